from functools import partial

import numpy as np
import pytest
import torch
from reference import losses as reference
from scipy import linalg

from condkd_ray.methods.losses.discrepancy import (
    class_frechet,
    class_mmd,
    class_moments,
    left_proportions,
    marginal_mmd,
    marginal_moments,
    median_distance,
    squared_distances,
)

RNG = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(14, 6, generator=RNG).double(), torch.randn(9, 6, generator=RNG).double() + 1
LEFT_LABELS, RIGHT_LABELS = torch.arange(14) % 4, torch.arange(9) % 3
MEDIAN = torch.tensor(8.0, dtype=torch.float64)

mmd = partial(class_mmd, num_classes=5, median=MEDIAN)
moments = partial(class_moments, num_classes=5)
frechet = partial(class_frechet, num_classes=5)


def both_moments(*sides):
    return sum(moments(*sides))


def all_moments(*sides):
    return sum(marginal_moments(*sides, num_classes=5))


whole_mmd = partial(marginal_mmd, num_classes=5, median=MEDIAN)
each_distance = pytest.mark.parametrize(
    "apart", [mmd, both_moments, whole_mmd, all_moments], ids=["mmd", "moments", "marginal mmd", "marginal moments"]
)
each_discrepancy = pytest.mark.parametrize("apart", [mmd, both_moments], ids=["mmd", "moments"])
"""Functions of (features, labels, features, labels) to a scalar, 0 for equal sets."""


def plain(*sides):
    return [side.tolist() for side in sides]


def test_the_sides_share_three_classes_and_the_left_has_one_more():
    assert set(LEFT_LABELS.tolist()) == {0, 1, 2, 3}
    assert set(RIGHT_LABELS.tolist()) == {0, 1, 2}


# Properties of all distances.


@each_distance
def test_gradients_equal_finite_differences(apart):
    left = LEFT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apart(x, LEFT_LABELS, RIGHT, RIGHT_LABELS), (left,))


@each_distance
def test_the_distance_is_0_between_equal_sets_in_any_order_and_grows_with_a_shift(apart):
    order = torch.randperm(14, generator=RNG)
    assert apart(LEFT, LEFT_LABELS, LEFT[order], LEFT_LABELS[order]).item() == pytest.approx(0, abs=1e-12)
    near, far = (apart(LEFT, LEFT_LABELS, LEFT + shift, LEFT_LABELS).item() for shift in (0.1, 1.0))
    assert 1e-3 < near < far


@each_discrepancy
def test_equal_images_with_exchanged_labels_have_a_positive_distance(apart):
    features = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert apart(features, labels, features, labels).item() == pytest.approx(0, abs=1e-12)
    assert apart(features, labels, features, labels.flip(0)) > 1


@each_distance
def test_without_a_common_class_the_distance_is_0(apart):
    left = LEFT.clone().requires_grad_()
    value = apart(left, torch.zeros_like(LEFT_LABELS), RIGHT, torch.ones_like(RIGHT_LABELS))
    value.backward()
    assert value == 0
    assert (left.grad == 0).all()


@each_distance
def test_a_class_of_only_one_side_has_no_effect(apart):
    wanted = apart(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)
    moved = LEFT + 7 * (LEFT_LABELS == 3)[:, None]
    torch.testing.assert_close(apart(moved, LEFT_LABELS, RIGHT, RIGHT_LABELS), wanted)


@each_distance
def test_autocast_does_not_change_the_distance(apart):
    left, right = LEFT.float() + 30, RIGHT.float() + 30
    wanted = apart(left, LEFT_LABELS, right, RIGHT_LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = apart(left, LEFT_LABELS, right, RIGHT_LABELS)
    assert torch.equal(found, wanted)


# MMD.


def test_mmd_equals_the_plain_loop():
    found = mmd(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)
    wanted = reference.class_mmd(*plain(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS), 8.0)
    assert found.item() == pytest.approx(wanted, rel=1e-9)


def test_distances_have_a_finite_gradient_at_0():
    points = LEFT.clone().requires_grad_()
    distances = squared_distances(points, points)
    distances.sum().backward()
    assert points.grad.isfinite().all()
    assert (distances >= 0).all()


def test_the_median_distance_is_that_of_all_pairs():
    assert median_distance(RIGHT).item() == pytest.approx(reference.median_distance(RIGHT.tolist()), rel=1e-9)


# Moments.


def test_moments_equal_those_of_covariance_matrices():
    found = [value.item() for value in moments(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)]
    wanted = reference.class_moments(*plain(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS))
    assert found == pytest.approx(wanted, rel=1e-9)
    assert min(wanted) > 0.1


def test_a_shift_changes_only_the_mean_term_and_a_scaling_only_the_covariance_term():
    mean, covariance = moments(LEFT, LEFT_LABELS, LEFT + 2, LEFT_LABELS)
    assert mean.item() == pytest.approx(4 * 6, rel=1e-9)
    assert covariance.item() == pytest.approx(0, abs=1e-9)
    centres = torch.stack([LEFT[label == LEFT_LABELS].mean(0) for label in range(4)])[LEFT_LABELS]
    mean, covariance = moments(LEFT, LEFT_LABELS, centres + 3 * (LEFT - centres), LEFT_LABELS)
    assert mean.item() == pytest.approx(0, abs=1e-9)
    assert covariance > 1


def test_classes_of_one_image_have_only_a_mean_term():
    features, labels = LEFT[:3], torch.arange(3)
    mean, covariance = moments(features, labels, RIGHT[:3], labels)
    assert mean.item() == pytest.approx((features - RIGHT[:3]).square().sum(1).mean().item())
    assert covariance == 0


# Frechet distance.


def by_matrix_roots(x, y):
    """Return the Frechet distance of one class by the definition, with a matrix square root."""
    (mean, cov), (mean_, cov_) = ((side.mean(0), np.cov(side.T, bias=True)) for side in (x, y))
    return ((mean - mean_) ** 2).sum() + np.trace(cov + cov_ - 2 * linalg.sqrtm(cov @ cov_).real)


def full_rank(count, shift, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)) @ rng.normal(size=(6, 6)) + shift


def test_frechet_equals_the_definition_by_matrix_roots():
    left, right = ([full_rank(20 + k, shift, 10 * k + shift) for k in range(3)] for shift in (0, 1))
    labels = [torch.arange(3).repeat_interleave(torch.tensor([len(x) for x in side])) for side in (left, right)]
    sides = [torch.from_numpy(np.concatenate(side)) for side in (left, right)]
    shuffled = torch.randperm(len(labels[0]), generator=RNG)
    found = frechet(sides[0][shuffled], labels[0][shuffled], sides[1], labels[1])
    assert found.item() == pytest.approx(np.mean([by_matrix_roots(x, y) for x, y in zip(left, right, strict=True)]))


def test_frechet_of_a_shift_is_its_square_and_of_a_scaling_that_of_the_deviations():
    assert frechet(LEFT, LEFT_LABELS, LEFT + 2, LEFT_LABELS).item() == pytest.approx(4 * 6)
    assert frechet(LEFT, LEFT_LABELS, LEFT, LEFT_LABELS).item() == pytest.approx(0, abs=1e-9)
    one = torch.zeros(14, dtype=torch.long)
    centred = LEFT - LEFT.mean(0)
    wanted = 4 * centred.square().sum(1).mean().item()
    assert frechet(centred, one, 3 * centred, one).item() == pytest.approx(wanted)


def test_frechet_is_over_common_classes_and_of_single_images_the_distance_of_means():
    moved = LEFT + 7 * (LEFT_LABELS == 3)[:, None]
    wanted = frechet(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)
    torch.testing.assert_close(frechet(moved, LEFT_LABELS, RIGHT, RIGHT_LABELS), wanted)
    assert frechet(LEFT, torch.zeros_like(LEFT_LABELS), RIGHT, torch.ones_like(RIGHT_LABELS)) == 0
    labels = torch.arange(3)
    apart = (LEFT[:3] - RIGHT[:3]).square().sum(1).mean().item()
    assert frechet(LEFT[:3], labels, RIGHT[:3], labels).item() == pytest.approx(apart)


def test_autocast_does_not_change_the_frechet_distance():
    sides = LEFT.float() + 30, LEFT_LABELS, RIGHT.float() + 30, RIGHT_LABELS
    wanted = frechet(*sides)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frechet(*sides), wanted)


# Marginal distances, over all classes at once.


def test_marginal_distances_equal_the_plain_loops():
    sides = (LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)
    assert whole_mmd(*sides).item() == pytest.approx(reference.marginal_mmd(*plain(*sides), 8.0), rel=1e-9)
    found = [value.item() for value in marginal_moments(*sides, num_classes=5)]
    assert found == pytest.approx(reference.marginal_moments(*plain(*sides)), rel=1e-9)
    assert min(found) > 0.1


def test_the_right_side_is_weighted_to_the_proportions_of_the_left():
    left, right = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 1, 1, 1, 2])
    ours, theirs = left_proportions(left, right, 5, torch.float64)
    assert ours.tolist() == pytest.approx([0.25] * 4 + [0])
    assert theirs.tolist() == pytest.approx([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3, 0])


@pytest.mark.parametrize("apart", [whole_mmd, all_moments], ids=["mmd", "moments"])
def test_a_marginal_distance_does_not_depend_on_which_image_has_which_label(apart):
    features, labels = LEFT[:8], torch.arange(8) % 4
    assert apart(features, labels, features, labels.flip(0)).item() == pytest.approx(0, abs=1e-12)
    assert mmd(features, labels, features, labels.flip(0)) > 0.1
