"""What every store keeps to: the same ids, the same samples bit for bit, the same counts, the same errors."""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import toy

from condkd_ray.core.samples import Codec, PixelSpace, unseen
from condkd_ray.methods.memory import LocalStore, Store
from condkd_ray.methods.memory.store import MissingSamplesError

Make = Callable[..., Store]


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory) -> Iterator[Any]:
    import ray

    from condkd_ray.cluster.pool import make_pool

    actor = make_pool(tmp_path_factory.mktemp("pool"), 2**30)
    yield actor
    ray.kill(actor)


@pytest.fixture(params=["memory", "folder", pytest.param("pool", marks=pytest.mark.ray)])
def make(request, tmp_path) -> Make:
    """A function that opens a store; called again it opens the same chunks, as after a crash (`memory` has none)."""

    def local(space: PixelSpace = "unit", logits: bool = True) -> Store:
        folder = tmp_path / "chunks" if request.param == "folder" else None
        return LocalStore(Codec(space, toy.MEAN, toy.STD, logits), toy.NUM_CLASSES, folder)

    if request.param != "pool":
        return local
    pool = request.getfixturevalue("pool")
    from condkd_ray.cluster.stores import PoolStore

    key = secrets.token_hex(4)
    return lambda space="unit", logits=True: PoolStore(
        Codec(space, toy.MEAN, toy.STD, logits), toy.NUM_CLASSES, pool, key
    )


def equal(store: Store, ids: torch.Tensor, expected) -> bool:
    found, decoded = store.gather(ids), store.codec.decode(store.codec.encode(expected))
    return all(
        torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
        for a, b in zip(vars(found).values(), vars(decoded).values(), strict=True)
    )


@pytest.mark.parametrize("space", ["unit", "model"])
def test_samples_come_back_decoded_in_the_order_asked_for(make, space):
    store = make(space)
    first, second = toy.samples(5, seed=1), toy.samples(3, seed=2)
    assert store.append(first).tolist() == [0, 1, 2, 3, 4]
    assert store.append(second).tolist() == [5, 6, 7]
    assert store.num_ids == 8
    assert equal(store, torch.arange(5), first)
    assert equal(store, torch.tensor([6]), second[torch.tensor([1])])
    mixed = torch.tensor([7, 0, 0, 6, 4])
    rows = [(second, 2), (first, 0), (first, 0), (second, 1), (first, 4)]
    assert torch.equal(store.gather(mixed).labels, torch.stack([part.labels[row] for part, row in rows]))
    assert equal(store, torch.tensor([7, 5]), second[torch.tensor([2, 0])])
    assert len(store.gather(mixed[:0])) == 0


def test_what_is_gathered_may_be_written_to(make):
    store = make()
    samples = toy.samples(4)
    store.append(samples)
    taken = store.gather(torch.arange(4))
    for tensor in vars(taken).values():
        tensor.zero_()
    assert equal(store, torch.arange(4), samples)


def test_an_empty_append_gives_no_ids(make):
    store = make()
    assert store.append(toy.samples(0)).tolist() == []
    assert store.num_ids == 0
    assert store.append(toy.samples(2)).tolist() == [0, 1]


def test_counts_and_bytes_are_those_of_the_living(make):
    store = make()
    assert store.class_counts.tolist() == [0, 0, 0, 0]
    assert store.num_bytes == 0
    store.append(toy.sure(0, 1, 1, 3))
    store.append(toy.sure(3, 3))
    assert store.class_counts.tolist() == [1, 2, 0, 3]
    row = 64 + 8 + 2 * toy.NUM_CLASSES
    assert store.num_bytes == 6 * row
    store.drop(torch.tensor([4, 1, 1]))
    store.drop(torch.tensor([1, 77, -1]))
    assert store.class_counts.tolist() == [1, 1, 0, 2]
    store.commit()
    assert store.num_bytes == 4 * row
    assert store.class_counts.dtype == torch.int64


def test_without_logits_it_keeps_and_restores_images_and_labels(make, request):
    store, parts = make(logits=False), [unseen(toy.samples(4, seed=seed).images, torch.arange(4)) for seed in range(20)]
    for part in parts:
        store.append(part)
        store.commit()
    assert store.num_bytes == 80 * (64 + 8)
    assert store.class_counts.tolist() == [0, 0, 0, 0]
    if "memory" not in request.node.name:
        store = make(logits=False)
        store.restore(80, torch.arange(80))
    for number, part in enumerate(parts):
        assert equal(store, torch.arange(4 * number, 4 * number + 4), part)


def test_logits_that_a_trial_does_not_read_are_left_in_the_files(make, request):
    if "memory" in request.node.name:
        pytest.skip("this store does not outlive its process")
    store, old = make(), [toy.samples(4, seed=seed) for seed in range(10)]
    for part in old:
        store.append(part)
    store = make(logits=False)
    store.restore(40, torch.arange(40))
    for number in range(20):
        store.append(unseen(old[0].images, torch.full((4,), number % 4)))
        store.commit()
    assert store.num_bytes == 120 * (64 + 8)
    assert equal(store, torch.arange(4, 8), unseen(old[1].images, old[1].labels))
    assert store.gather(torch.tensor([116, 3])).labels.tolist() == [3, int(old[0].labels[3])]


def test_ids_never_given_out_are_refused(make):
    store = make()
    with pytest.raises(KeyError):
        store.gather(torch.tensor([0]))
    store.append(toy.samples(4))
    for bad in (4, -1, 1000):
        with pytest.raises(KeyError, match=str(bad)):
            store.gather(torch.tensor([0, bad]))


def test_dropped_chunks_go_with_a_commit_and_not_before(make):
    store = make()
    first, second = toy.samples(3, seed=1), toy.samples(3, seed=2)
    store.drop(store.append(first))
    store.append(second)
    assert equal(store, torch.arange(3), first)
    store.commit()
    with pytest.raises(KeyError):
        store.gather(torch.tensor([0]))
    assert equal(store, torch.tensor([3, 4, 5]), second)
    assert store.append(first).tolist() == [6, 7, 8]


def test_many_small_chunks_are_as_one(make):
    store = make()
    parts = [toy.samples(3, seed=seed) for seed in range(40)]
    for part in parts:
        store.append(part)
        store.commit()
    assert store.num_ids == 120
    for number, part in enumerate(parts):
        assert equal(store, torch.arange(3 * number, 3 * number + 3), part)
    store.drop(torch.arange(60))
    store.commit()
    assert equal(store, torch.arange(117, 120), parts[-1])
    assert int(store.class_counts.sum()) == 60


def test_restore_takes_a_store_back_to_its_checkpoint(make):
    store = make()
    parts = [toy.sure(0, 1, 2, 3) for _ in range(3)]
    store.append(parts[0])
    store.append(parts[1])
    num_ids, live = store.num_ids, torch.tensor([1, 2, 3, 4, 5])
    store.append(parts[2])
    store.drop(torch.arange(8))
    store.restore(num_ids, live)
    assert store.num_ids == 8
    assert store.class_counts.tolist() == [1, 2, 1, 1]
    assert equal(store, torch.arange(4, 8), parts[1])
    with pytest.raises(KeyError):
        store.gather(torch.tensor([8]))
    again = toy.samples(4, seed=9)
    assert store.append(again).tolist() == [8, 9, 10, 11]
    assert equal(store, torch.arange(8, 12), again)


def test_restore_refuses_a_checkpoint_whose_samples_are_gone(make):
    store = make()
    store.append(toy.samples(4))
    with pytest.raises(MissingSamplesError, match="after 8 samples"):
        store.restore(8, torch.tensor([1, 6]))
    store.restore(8, torch.tensor([1]))
    assert store.append(toy.samples(2)).tolist() == [8, 9]


def test_a_crash_after_a_checkpoint_loses_nothing_it_refers_to(make, request):
    store = make()
    if "memory" in request.node.name:
        pytest.skip("this store does not outlive its process")
    kept = [toy.samples(4, seed=seed) for seed in range(20)]
    for part in kept:
        store.append(part)
    store.commit()
    store.drop(torch.arange(8))
    store.append(toy.samples(4, seed=99))
    # Here the process dies: dropped but not committed, appended but not in the checkpoint.
    store = make()
    store.restore(80, torch.arange(80))
    assert store.num_ids == 80
    for number, part in enumerate(kept):
        assert equal(store, torch.arange(4 * number, 4 * number + 4), part)
