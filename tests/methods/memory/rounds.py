"""Rounds of samples for tests of memories. A sample's label and the teacher's class are the number of its round."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.memory import LocalStore, Store


def store() -> LocalStore:
    return LocalStore(Codec("unit", (0.0,), (1.0,)), num_classes=100)


def round_of(number: int, size: int) -> Samples:
    labels = torch.full((size,), number)
    return Samples(torch.rand(size, 1, 2, 2), labels, F.one_hot(labels, 100).float())


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """On a GPU, raise an error if the host waits for it; on a CPU, do nothing."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def draws_without_waiting(store: Store, rounds: int) -> list[Samples]:
    """Append rounds of 40 samples, and draw 64 samples after each. Raises an error if a draw waits for a GPU.

    Images are (1, 4, 4), of 7 classes. After every third round the oldest samples are dropped.
    """
    found = []
    for number in range(rounds):
        rng = torch.Generator().manual_seed(number)
        images, labels = torch.rand(40, 1, 4, 4, generator=rng), torch.randint(7, (40,), generator=rng)
        store.append(Samples(images, labels, torch.randn(40, 7, generator=rng)).to(store.device))
        ids = torch.randint(20 * (number // 3), store.num_ids, (64,), generator=rng)
        with waiting_is_an_error():
            found.append(store.gather(ids))
        if number % 3 == 2:
            store.drop(torch.arange(20 * (number // 3 + 1)))
            store.commit()
    return found


def assert_alike(on_host: list[Samples], on_device: list[Samples]) -> None:
    """Check that samples on a GPU equal those on the host, except for rounding in a division."""
    for left, right in zip(on_host, on_device, strict=True):
        assert right.images.is_cuda
        assert torch.equal(left.labels, right.labels.cpu())
        assert torch.equal(left.logits, right.logits.cpu())
        torch.testing.assert_close(left.images, right.images.cpu())
