import pytest
import torch
from reference import losses as reference
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Mmd

RNG = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(14, 6, generator=RNG).double(), torch.randn(9, 6, generator=RNG).double() + 1
RIGHT_LABELS = torch.arange(9) % 3


def test_the_bandwidth_is_the_median_of_the_condensed_distances():
    state = Mmd().init(make_teacher(), RIGHT.float(), RIGHT_LABELS, Streams(0))
    assert state.median.item() == pytest.approx(reference.median_distance(RIGHT.tolist()), rel=1e-4)


def test_the_penalty_is_relative_to_the_condensed_features_of_the_last_update():
    guidance, labels = Mmd(), RIGHT_LABELS
    state = guidance.init(make_teacher(), RIGHT.float(), labels, Streams(0))
    fake, real = LEFT[:9].float(), LEFT[:9].float()
    before = guidance.penalty(state, fake, labels, rng=RNG)
    logged = guidance.update(state, fake, real, labels, rng=RNG)["mmd"]
    assert before > 0.1
    assert logged.item() == pytest.approx(0, abs=1e-5)
    assert guidance.penalty(state, fake, labels, rng=RNG).item() == pytest.approx(0, abs=1e-5)


def test_gradient_descent_reduces_the_penalty():
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
