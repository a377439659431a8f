import torch

from condkd_ray.methods.memory.live_ids import Ledger


def filled() -> Ledger:
    ledger = Ledger(3)
    ledger.cover(0, torch.tensor([0, 1, 2, 2]))
    ledger.cover(4, torch.tensor([1, 1]))
    return ledger


def test_class_counts_are_of_the_living():
    ledger = filled()
    assert ledger.class_counts.tolist() == [1, 3, 2]
    ledger.drop(torch.tensor([1, 3, 3, 99, -1]))
    ledger.drop(torch.tensor([1]))
    assert (ledger.class_counts.tolist(), ledger.num_live, ledger.num_ids) == ([1, 2, 1], 4, 6)


def test_those_of_which_the_teacher_has_not_been_asked_live_and_count_nowhere():
    ledger = filled()
    ledger.cover(6, torch.tensor([-1, 2, -1]))
    assert (ledger.class_counts.tolist(), ledger.num_live, ledger.num_ids) == ([1, 3, 3], 9, 9)


def test_a_chunk_read_again_wakes_nobody():
    ledger = filled()
    ledger.drop(torch.tensor([0, 1]))
    ledger.cover(0, torch.tensor([0, 1, 2, 2]))
    assert ledger.class_counts.tolist() == [0, 2, 2]


def test_restored_it_is_as_at_the_checkpoint():
    ledger = filled()
    ledger.drop(torch.tensor([0]))
    ledger.restore(4, torch.tensor([0, 2]))
    assert (ledger.num_ids, ledger.class_counts.tolist()) == (4, [1, 0, 1])
    assert ledger.any_live(2, 1)
    assert not ledger.any_live(1, 1)
