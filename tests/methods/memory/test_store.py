import torch

from condkd_ray.methods.memory.store import LiveIds


def filled() -> LiveIds:
    ids = LiveIds(3)
    ids.cover(0, torch.tensor([0, 1, 2, 2]))
    ids.cover(4, torch.tensor([1, 1]))
    return ids


def test_class_counts_are_of_the_living():
    ids = filled()
    assert ids.class_counts.tolist() == [1, 3, 2]
    ids.drop(torch.tensor([1, 3, 3, 99, -1]))
    ids.drop(torch.tensor([1]))
    assert (ids.class_counts.tolist(), ids.num_live, ids.num_ids) == ([1, 2, 1], 4, 6)


def test_those_of_which_the_teacher_has_not_been_asked_live_and_count_nowhere():
    ids = filled()
    ids.cover(6, torch.tensor([-1, 2, -1]))
    assert (ids.class_counts.tolist(), ids.num_live, ids.num_ids) == ([1, 3, 3], 9, 9)


def test_a_chunk_read_again_wakes_nobody():
    ids = filled()
    ids.drop(torch.tensor([0, 1]))
    ids.cover(0, torch.tensor([0, 1, 2, 2]))
    assert ids.class_counts.tolist() == [0, 2, 2]


def test_restored_it_is_as_at_the_checkpoint():
    ids = filled()
    ids.drop(torch.tensor([0]))
    ids.restore(4, torch.tensor([0, 2]))
    assert (ids.num_ids, ids.class_counts.tolist()) == (4, [1, 0, 1])
    assert ids.any_live(2, 1)
    assert not ids.any_live(1, 1)
