import pytest
import torch
from reference import losses as reference
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Moments

RNG = torch.Generator().manual_seed(0)
FAKE, CONDENSED = torch.randn(12, 6, generator=RNG), 3 * torch.randn(12, 6, generator=RNG) + 1
LABELS = torch.arange(12) % 3


def started(**settings):
    guidance = Moments(**settings)
    return guidance, guidance.init(make_teacher(), CONDENSED, LABELS, Streams(0))


def test_condensed_features_are_scaled_to_unit_mean_squared_norm():
    _, state = started()
    assert (CONDENSED * state.scale).square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("covariance_weight", [0.0, 1.0, 2.5])
def test_the_penalty_is_the_weighted_sum_of_both_distances(covariance_weight):
    guidance, state = started(covariance_weight=covariance_weight)
    sides = [(state.scale * FAKE).tolist(), LABELS.tolist(), (state.scale * CONDENSED).tolist(), LABELS.tolist()]
    mean, covariance = reference.class_moments(*sides)
    assert min(mean, covariance) > 1e-2
    found = guidance.penalty(state, FAKE, LABELS, rng=RNG).item()
    assert found == pytest.approx(mean + covariance_weight * covariance, rel=1e-4)
    logged = guidance.update(state, FAKE, CONDENSED, LABELS, rng=RNG)
    assert [value.item() for value in logged.values()] == pytest.approx([mean, covariance], rel=1e-4)
    assert logged.keys() == {"mean", "covariance"}


def test_the_penalty_does_not_depend_on_the_scale_of_the_features():
    guidance, state = started()
    other = guidance.init(make_teacher(), 100 * CONDENSED, LABELS, Streams(0))
    once, scaled = (guidance.penalty(s, f * FAKE, LABELS, rng=RNG).item() for s, f in ((state, 1), (other, 100)))
    assert scaled == pytest.approx(once, rel=1e-4)


def test_the_penalty_is_relative_to_the_condensed_features_of_the_last_update():
    guidance, state = started()
    assert guidance.penalty(state, FAKE, LABELS, rng=RNG) > 0.1
    guidance.update(state, CONDENSED, FAKE, LABELS, rng=RNG)
    assert guidance.penalty(state, FAKE, LABELS, rng=RNG).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("covariance_weight", "matched"), [(0.0, [True, False]), (1.0, [True, True])])
def test_gradient_descent_on_the_penalty_matches_the_moments(covariance_weight, matched):
    guidance, state = started(covariance_weight=covariance_weight)
    features = FAKE.clone().requires_grad_()
    optimizer = torch.optim.Adam([features], 0.1)
    logged = [guidance.update(state, features.detach(), CONDENSED, LABELS, rng=RNG)]
    for _ in range(150):
        (features.grad,) = torch.autograd.grad(guidance.penalty(state, features, LABELS, rng=RNG), [features])
        optimizer.step()
    logged.append(guidance.update(state, features.detach(), CONDENSED, LABELS, rng=RNG))
    assert [bool(logged[1][name] < 0.1 * logged[0][name]) for name in ("mean", "covariance")] == matched


def test_autocast_does_not_change_the_penalty():
    guidance, state = started()
    wanted = guidance.penalty(state, FAKE, LABELS, rng=RNG)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guidance.penalty(state, FAKE, LABELS, rng=RNG), wanted)


@pytest.mark.parametrize("what", ["weight", "covariance_weight"])
def test_a_negative_weight_is_refused(what):
    with pytest.raises(InputError, match=f"{what} is -0.5; accepted: >= 0"):
        Moments(**{what: -0.5})
