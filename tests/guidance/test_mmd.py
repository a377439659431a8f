from functools import partial

import pytest
import torch
from reference import losses as reference
from toy import make_teacher

from condkd_ray.guidance import Mmd
from condkd_ray.losses.discrepancy import class_mmd, squared_distances
from condkd_ray.method import InputError
from condkd_ray.streams import Streams

RNG = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(14, 6, generator=RNG).double(), torch.randn(9, 6, generator=RNG).double() + 1
LEFT_LABELS, RIGHT_LABELS = torch.arange(14) % 4, torch.arange(9) % 3
MEDIAN = torch.tensor(8.0, dtype=torch.float64)

mmd = partial(class_mmd, num_classes=5, median=MEDIAN)


def test_equals_the_plain_loop():
    assert set(LEFT_LABELS.tolist()) == {0, 1, 2, 3}
    assert set(RIGHT_LABELS.tolist()) == {0, 1, 2}
    found = mmd(LEFT, LEFT_LABELS, RIGHT, RIGHT_LABELS)
    wanted = reference.class_mmd(LEFT.tolist(), LEFT_LABELS.tolist(), RIGHT.tolist(), RIGHT_LABELS.tolist(), 8.0)
    assert found.item() == pytest.approx(wanted, rel=1e-9)


def test_gradients_are_those_of_the_values():
    left = LEFT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mmd(x, LEFT_LABELS, RIGHT, RIGHT_LABELS), (left,))


def test_a_set_is_at_distance_0_from_itself_in_any_order_and_away_from_a_shifted_one():
    order = torch.randperm(14, generator=RNG)
    assert mmd(LEFT, LEFT_LABELS, LEFT[order], LEFT_LABELS[order]).item() == pytest.approx(0, abs=1e-12)
    near, far = (mmd(LEFT, LEFT_LABELS, LEFT + shift, LEFT_LABELS).item() for shift in (0.1, 1.0))
    assert 1e-3 < near < far


def test_the_same_images_under_exchanged_labels_are_apart():
    features = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert mmd(features, labels, features, labels).item() == pytest.approx(0, abs=1e-12)
    assert mmd(features, labels, features, labels.flip(0)) > 1


def test_without_a_common_class_it_is_0():
    left = LEFT.clone().requires_grad_()
    value = mmd(left, torch.zeros_like(LEFT_LABELS), RIGHT, torch.ones_like(RIGHT_LABELS))
    value.backward()
    assert value == 0
    assert (left.grad == 0).all()


def test_distances_have_a_finite_gradient_at_0():
    points = LEFT.clone().requires_grad_()
    distances = squared_distances(points, points)
    distances.sum().backward()
    assert points.grad.isfinite().all()
    assert (distances >= 0).all()


def test_autocast_does_not_touch_it():
    left, right = LEFT.float() + 30, RIGHT.float() + 30
    wanted = mmd(left, LEFT_LABELS, right, RIGHT_LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = mmd(left, LEFT_LABELS, right, RIGHT_LABELS)
    assert torch.equal(found, wanted)


def test_the_bandwidth_is_the_median_of_the_condensed_distances():
    state = Mmd().init(make_teacher(), RIGHT.float(), RIGHT_LABELS, Streams(0))
    assert state.median.item() == pytest.approx(reference.median_distance(RIGHT.tolist()), rel=1e-4)


def test_it_compares_with_the_condensed_features_last_seen():
    guidance, labels = Mmd(), RIGHT_LABELS
    state = guidance.init(make_teacher(), RIGHT.float(), labels, Streams(0))
    fake, real = LEFT[:9].float(), LEFT[:9].float()
    before = guidance.penalty(state, fake, labels, rng=RNG)
    logged = guidance.update(state, fake, real, labels, rng=RNG)["mmd"]
    assert before > 0.1
    assert logged.item() == pytest.approx(0, abs=1e-5)
    assert guidance.penalty(state, fake, labels, rng=RNG).item() == pytest.approx(0, abs=1e-5)


def test_following_the_penalty_brings_the_images_nearer():
    guidance, labels = Mmd(), torch.arange(9) % 3
    state = guidance.init(make_teacher(), RIGHT.float(), labels, Streams(0))
    features = (RIGHT.float() + 2).requires_grad_()
    optimizer = torch.optim.Adam([features], 0.1)
    values = []
    for _ in range(60):
        values.append(guidance.penalty(state, features, labels, rng=RNG))
        (features.grad,) = torch.autograd.grad(values[-1], [features])
        optimizer.step()
    assert values[-1] < 0.1 * values[0]


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match="weight"):
        Mmd(weight=-0.5)
