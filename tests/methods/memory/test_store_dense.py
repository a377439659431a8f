"""Stores of segmentation samples: masks in place of labels, pixels in place of samples in the class counts."""

import pytest
import torch

from condkd_ray.core.samples import MASK, Codec, Samples, unseen
from condkd_ray.methods.memory import LocalStore
from condkd_ray.methods.memory.store import LiveIds

K, SHAPE = 3, (3, 4, 6)


def codec(*, logits=False):
    return Codec("unit", (0.5,) * 3, (0.25,) * 3, logits)


def samples(count, seed, *, logits=False):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), generator=rng).float() / 255 * 4 - 2
    labels = torch.randint(0, K, (count, *SHAPE[1:]), generator=rng)
    if not logits:
        return unseen(images, labels)
    return Samples(images, labels, torch.randn(count, K, *SHAPE[1:], generator=rng).half().float())


def counts(masks):
    return [(masks == k).sum().item() for k in range(K)]


@pytest.mark.parametrize("logits", [False, True])
def test_samples_come_back_from_memory_and_from_files(tmp_path, logits):
    store, given = LocalStore(codec(logits=logits), K, tmp_path), samples(5, 0, logits=logits)
    ids = store.append(given)
    again = LocalStore(codec(logits=logits), K, tmp_path)
    for found in (store.gather(ids.flip(0)), again.gather(ids.flip(0))):
        torch.testing.assert_close(found.images, given.images.flip(0), atol=1e-6, rtol=0)
        assert torch.equal(found.labels, given.labels.flip(0))
        assert found.labels.dtype == torch.int64
        assert torch.equal(found.logits, given.logits.flip(0))


def test_masks_are_kept_as_int16_and_counted_in_the_bytes():
    store = LocalStore(codec(), K)
    store.append(samples(5, 0))
    assert codec().encode(samples(1, 0)).labels.dtype == MASK
    assert store.num_bytes == 5 * (3 + 2) * 4 * 6


def test_stored_logits_take_two_bytes_for_each_class_and_pixel():
    store = LocalStore(codec(logits=True), K)
    store.append(samples(5, 0, logits=True))
    assert store.num_bytes == 5 * (3 + 2 + 2 * K) * 4 * 6


def test_class_counts_are_pixels_of_the_live_samples(tmp_path):
    store, first, second = LocalStore(codec(), K, tmp_path), samples(4, 0), samples(3, 1)
    store.append(first)
    store.append(second)
    store.drop(torch.tensor([1, 5]))
    kept = torch.cat([first.labels[[0, 2, 3]], second.labels[[0, 2]]])
    assert store.class_counts.tolist() == counts(kept)
    again = LocalStore(codec(), K, tmp_path)
    again.restore(4, torch.tensor([0, 2, 3]))
    assert again.class_counts.tolist() == counts(first.labels[[0, 2, 3]])


def test_with_logits_the_counted_classes_are_the_teachers_predictions():
    store, given = LocalStore(codec(logits=True), K), samples(4, 0, logits=True)
    store.append(given)
    assert store.class_counts.tolist() == counts(given.logits.argmax(1))


def test_small_chunks_are_joined_without_a_change():
    store, parts = LocalStore(codec(), K), [samples(2, seed) for seed in range(20)]
    for part in parts:
        store.append(part)
    store.commit()
    assert len(store.table.spans()) < len(parts)
    assert torch.equal(store.gather(torch.arange(40)).labels, torch.cat([part.labels for part in parts]))


def test_an_empty_store_counts_no_pixels():
    ids = LiveIds(K)
    assert ids.class_counts.tolist() == [0] * K
    ids.restore(0, torch.empty(0, dtype=torch.int64))
    ids.cover(0, torch.zeros(2, 4, 6, dtype=torch.int64))
    assert ids.class_counts.tolist() == [48, 0, 0]
