import torch

from condkd_ray.methods.memory.store import LiveIds


def filled() -> LiveIds:
    ids = LiveIds(3)
    ids.cover(0, torch.tensor([0, 1, 2, 2]))
    ids.cover(4, torch.tensor([1, 1]))
    return ids


def test_class_counts_are_of_live_samples():
    ids = filled()
    assert ids.class_counts.tolist() == [1, 3, 2]
    ids.drop(torch.tensor([1, 3, 3, 99, -1]))
    ids.drop(torch.tensor([1]))
    assert (ids.class_counts.tolist(), ids.num_live, ids.num_ids) == ([1, 2, 1], 4, 6)


def test_samples_without_a_class_are_live_and_in_no_class_count():
    ids = filled()
    ids.cover(6, torch.tensor([-1, 2, -1]))
    assert (ids.class_counts.tolist(), ids.num_live, ids.num_ids) == ([1, 3, 3], 9, 9)


def test_covering_a_chunk_again_does_not_revive_dropped_samples():
    ids = filled()
    ids.drop(torch.tensor([0, 1]))
    ids.cover(0, torch.tensor([0, 1, 2, 2]))
    assert ids.class_counts.tolist() == [0, 2, 2]


def test_a_restored_state_is_that_of_the_checkpoint():
    ids = filled()
    ids.drop(torch.tensor([0]))
    ids.restore(4, torch.tensor([0, 2]))
    assert (ids.num_ids, ids.class_counts.tolist()) == (4, [1, 0, 1])
    assert ids.any_live(2, 1)
    assert not ids.any_live(1, 1)
