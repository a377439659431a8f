"""How answers are compared with labels, and when another order of the classes is held for the true one."""

import pytest
import torch

from condkd_ray.methods.recognition import (
    confusion_cycles,
    least_recognised,
    max_images_per_class,
    recognition,
    sign_test,
)

SWAPPED = torch.tensor([0, 1, 7, 3, 4, 5, 6, 2, 8, 9])


def drawn(right: float, each: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and labels of images, `each[k]` of class k, of which a share is named right, the others at random."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(each)).repeat_interleave(torch.tensor(each))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    wrong = (labels + torch.randint(1, len(each), (len(labels),), generator=rng)) % len(each)
    return torch.where(torch.rand(len(labels), generator=rng) < right, labels, wrong), labels


def test_a_teacher_that_knows_its_images():
    found = recognition(*drawn(0.9, [100] * 10), 10)
    assert found.share == pytest.approx(0.9, abs=0.03)
    assert found.low < found.share < found.high
    assert (found.verdict, found.order, found.num_classes) == ("known", None, 10)


def test_the_interval_is_wilsons_for_classes_of_equal_size():
    """7 of 10 and 0 of 10: the ends as published tables give them."""
    answers = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    found = recognition(answers, torch.tensor([0] * 5 + [1] * 5), 2)
    assert (found.share, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    found = recognition(torch.ones(10, dtype=torch.int64), torch.zeros(10, dtype=torch.int64), 2)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_a_class_with_most_of_the_images_does_not_decide():
    labels = torch.tensor([0] * 970 + [1] * 10 + [2] * 10 + [3] * 10)
    found = recognition(torch.zeros_like(labels), labels, 4)
    assert found.share == 0.25
    assert found.verdict == "unknown"


@pytest.mark.parametrize(("right", "verdict"), [(0, "doubtful"), (2, "doubtful"), (3, "known"), (9, "known")])
def test_ten_images_of_ten_classes_are_hardly_evidence(right: int, verdict: str):
    labels = torch.arange(10)
    answers = torch.where(labels < right, labels, (labels + 1) % 10)
    found = recognition(answers, labels, 10)
    assert (found.share, found.verdict, found.order) == (pytest.approx(right / 10), verdict, None)


def test_a_hundred_images_near_chance_are():
    assert recognition(*drawn(0.1, [10] * 10), 10).verdict == "unknown"


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_that_have_changed_places_are_found(seed: int):
    """With ten images a class, of which a teacher names 80 % right."""
    answers, labels = drawn(0.8, [10] * 10, seed)
    found = recognition(answers, SWAPPED[labels], 10)
    assert found.order == tuple(SWAPPED.tolist())
    assert found.ordered == pytest.approx(recognition(answers, labels, 10).share)


def test_two_of_a_hundred_classes_are_found_too():
    answers, labels = drawn(0.7, [20] * 100)
    order = torch.arange(100)
    order[[40, 41]] = order[[41, 40]]
    found = recognition(answers, order[labels], 100)
    assert found.order == tuple(order.tolist())
    assert found.verdict == "known"


@pytest.mark.parametrize("each", [[50] * 10, [200, 3, 40, 40, 40, 5, 40, 40, 40, 40]])
def test_any_other_order_is_found(each: list[int]):
    answers, labels = drawn(0.9, each)
    order = torch.tensor([3, 0, 9, 1, 5, 4, 8, 2, 7, 6])
    found = recognition(answers, order[labels], 10)
    assert found.order == tuple(order.tolist())
    assert found.share < 0.1
    assert found.ordered > 0.7


@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.6])
def test_no_order_is_made_up(right: float):
    """Not for answers at random, of a weak teacher, or of few images, in 50 draws each."""
    for seed in range(50):
        for each in ([1] * 10, [2] * 10, [10] * 10, [40] * 5):
            assert recognition(*drawn(max(right, 1 / len(each)), each, seed), len(each)).order is None


def test_a_weak_teacher_that_takes_one_class_for_another_keeps_its_order():
    """Cats are mostly named dogs, and dogs dogs."""
    answers, labels = drawn(0.8, [100] * 10)
    cats = (labels == 3) & (torch.arange(1000) % 10 < 7)
    assert recognition(torch.where(cats, 5, answers), labels, 10).order is None


def test_classes_without_images_are_left_out():
    answers, labels = drawn(0.9, [30, 0, 30, 30])
    found = recognition(answers, labels, 4)
    assert found.num_classes == 3
    assert found.share > 0.8
    assert found.order is None


@pytest.mark.parametrize(("num_classes", "least"), [(2, 0.75), (3, 2 / 3), (10, 0.25), (100, 0.025)])
def test_least(num_classes: int, least: float):
    assert least_recognised(num_classes) == pytest.approx(least)


@pytest.mark.parametrize(
    ("won", "lost", "sure"),
    [(9, 0, False), (10, 0, True), (10, 1, False), (31, 9, True), (0, 0, False), (5, 9, False)],
)
def test_which_of_two_namings_of_the_same_images_is_better(won: int, lost: int, sure: bool):
    """Ten heads of ten coins have p 0.00098."""
    assert sign_test(won, lost) == sure


def test_classes_that_are_taken_for_one_another():
    answers, labels = drawn(0.8, [10] * 10)
    assert confusion_cycles(answers, labels, 10) == []
    assert confusion_cycles(answers, SWAPPED[labels], 10) == [[2, 7]]
    assert confusion_cycles(torch.arange(10), torch.arange(10).roll(1), 10) == [list(range(10))]
    assert confusion_cycles(torch.zeros(10, dtype=torch.int64), torch.arange(10), 10) == []


@pytest.mark.parametrize(
    ("right", "each", "verdict"),
    [
        (0.65, [100] * 2, "doubtful"),
        (0.5, [100] * 2, "unknown"),
        (0.1, [100] * 2, "unknown"),
        (0.5, [100] * 3, "doubtful"),
        (0.35, [100] * 5, "doubtful"),
        (0.2, [100] * 5, "unknown"),
        (0.18, [100] * 10, "unknown"),
    ],
)
def test_an_honest_weak_teacher_of_few_classes_is_not_unknown(right: float, each: list[int], verdict: str):
    assert recognition(*drawn(right, each), len(each)).verdict == verdict


@pytest.mark.parametrize(
    ("num_classes", "most", "each"),
    [(10, 10**9, 100), (20, 10**9, 100), (100, 10**9, 20), (1000, 10**9, 2), (5000, 10**9, 1), (10, 200, 20)],
)
def test_a_teacher_is_asked_for_so_many_images_of_a_class_and_of_all(num_classes, most, each):
    assert max_images_per_class(num_classes, most) == each
    assert most == 200 or max_images_per_class(num_classes) == each
