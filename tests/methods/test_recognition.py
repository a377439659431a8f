"""The comparison of predictions with labels, and the detection of another order of the classes."""

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
    """Return predictions and labels of `each[k]` images of class k; a share `right` is correct, others are random."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(each)).repeat_interleave(torch.tensor(each))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    wrong = (labels + torch.randint(1, len(each), (len(labels),), generator=rng)) % len(each)
    return torch.where(torch.rand(len(labels), generator=rng) < right, labels, wrong), labels


def test_a_teacher_that_recognises_its_images_is_known():
    found = recognition(*drawn(0.9, [100] * 10), 10)
    assert found.share == pytest.approx(0.9, abs=0.03)
    assert found.low < found.share < found.high
    assert (found.verdict, found.order, found.num_classes) == ("known", None, 10)


def test_the_interval_is_wilsons_for_classes_of_equal_size():
    """The ends of the intervals are those of published tables."""
    predictions = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    found = recognition(predictions, torch.tensor([0] * 5 + [1] * 5), 2)
    assert (found.share, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    found = recognition(torch.ones(10, dtype=torch.int64), torch.zeros(10, dtype=torch.int64), 2)
    assert (found.low, found.high) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_the_share_is_balanced_over_classes():
    labels = torch.tensor([0] * 970 + [1] * 10 + [2] * 10 + [3] * 10)
    found = recognition(torch.zeros_like(labels), labels, 4)
    assert found.share == 0.25
    assert found.verdict == "unknown"


@pytest.mark.parametrize(("right", "verdict"), [(0, "doubtful"), (2, "doubtful"), (3, "known"), (9, "known")])
def test_ten_images_of_ten_classes_never_give_the_verdict_unknown(right: int, verdict: str):
    labels = torch.arange(10)
    predictions = torch.where(labels < right, labels, (labels + 1) % 10)
    found = recognition(predictions, labels, 10)
    assert (found.share, found.verdict, found.order) == (pytest.approx(right / 10), verdict, None)


def test_a_hundred_images_near_chance_give_the_verdict_unknown():
    assert recognition(*drawn(0.1, [10] * 10), 10).verdict == "unknown"


@pytest.mark.parametrize("seed", range(5))
def test_two_swapped_classes_are_found(seed: int):
    """There are ten images a class, of which 80 % are classified correctly."""
    predictions, labels = drawn(0.8, [10] * 10, seed)
    found = recognition(predictions, SWAPPED[labels], 10)
    assert found.order == tuple(SWAPPED.tolist())
    assert found.ordered == pytest.approx(recognition(predictions, labels, 10).share)


def test_two_swapped_classes_of_a_hundred_are_found():
    predictions, labels = drawn(0.7, [20] * 100)
    order = torch.arange(100)
    order[[40, 41]] = order[[41, 40]]
    found = recognition(predictions, order[labels], 100)
    assert found.order == tuple(order.tolist())
    assert found.verdict == "known"


@pytest.mark.parametrize("each", [[50] * 10, [200, 3, 40, 40, 40, 5, 40, 40, 40, 40]])
def test_any_other_order_is_found(each: list[int]):
    predictions, labels = drawn(0.9, each)
    order = torch.tensor([3, 0, 9, 1, 5, 4, 8, 2, 7, 6])
    found = recognition(predictions, order[labels], 10)
    assert found.order == tuple(order.tolist())
    assert found.share < 0.1
    assert found.ordered > 0.7


@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.6])
def test_no_order_is_reported_without_evidence(right: float):
    """This holds for random predictions, a weak teacher and few images, in 50 draws each."""
    for seed in range(50):
        for each in ([1] * 10, [2] * 10, [10] * 10, [40] * 5):
            assert recognition(*drawn(max(right, 1 / len(each)), each, seed), len(each)).order is None


def test_one_class_confused_with_another_is_not_another_order():
    """Cats are mostly classified as dogs, and so are dogs."""
    predictions, labels = drawn(0.8, [100] * 10)
    cats = (labels == 3) & (torch.arange(1000) % 10 < 7)
    assert recognition(torch.where(cats, 5, predictions), labels, 10).order is None


def test_classes_without_images_are_left_out():
    predictions, labels = drawn(0.9, [30, 0, 30, 30])
    found = recognition(predictions, labels, 4)
    assert found.num_classes == 3
    assert found.share > 0.8
    assert found.order is None


@pytest.mark.parametrize(("num_classes", "least"), [(2, 0.75), (3, 2 / 3), (10, 0.25), (100, 0.025)])
def test_the_least_share_depends_on_the_number_of_classes(num_classes: int, least: float):
    assert least_recognised(num_classes) == pytest.approx(least)


@pytest.mark.parametrize(
    ("won", "lost", "sure"),
    [(9, 0, False), (10, 0, True), (10, 1, False), (31, 9, True), (0, 0, False), (5, 9, False)],
)
def test_the_sign_test_needs_p_below_0_001(won: int, lost: int, sure: bool):
    """Ten of ten in favour have p = 0.00098."""
    assert sign_test(won, lost) == sure


def test_confusion_cycles_are_classes_that_are_swapped():
    predictions, labels = drawn(0.8, [10] * 10)
    assert confusion_cycles(predictions, labels, 10) == []
    assert confusion_cycles(predictions, SWAPPED[labels], 10) == [[2, 7]]
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
def test_the_verdict_on_a_weak_teacher_of_few_classes_allows_for_chance(right: float, each: list[int], verdict: str):
    assert recognition(*drawn(right, each), len(each)).verdict == verdict


@pytest.mark.parametrize(
    ("num_classes", "most", "each"),
    [(10, 10**9, 100), (20, 10**9, 100), (100, 10**9, 20), (1000, 10**9, 2), (5000, 10**9, 1), (10, 200, 20)],
)
def test_the_number_of_images_per_class_is_limited(num_classes, most, each):
    assert max_images_per_class(num_classes, most) == each
    assert most == 200 or max_images_per_class(num_classes) == each
