from functools import partial
from math import log

import pytest
import torch
from reference import losses as reference

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.discriminator import (
    FeatureDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

RNG = torch.Generator().manual_seed(0)
REAL, FAKE = 3 * torch.randn(2, 9, generator=RNG, dtype=torch.float64)


def test_tell_apart_and_fool_are_binary_cross_entropies():
    torch.testing.assert_close(
        discriminator_loss(REAL, FAKE).item(), reference.discriminator_loss(REAL.tolist(), FAKE.tolist())
    )
    torch.testing.assert_close(generator_loss(FAKE).item(), reference.generator_loss(FAKE.tolist()))


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothing_is_a_softer_target_of_the_real_ones_alone(smoothing):
    found = discriminator_loss(REAL, FAKE, "non_saturating", smoothing).item()
    assert found == pytest.approx(reference.discriminator_loss(REAL.tolist(), FAKE.tolist(), smoothing), rel=1e-9)
    best = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    losses = torch.stack([discriminator_loss(logit[None], FAKE, "non_saturating", smoothing) for logit in best])
    assert best[losses.argmin()].sigmoid().item() == pytest.approx(1 - smoothing, abs=2e-3)


def test_hinge_asks_for_a_margin_of_1_and_no_more():
    found = discriminator_loss(REAL, FAKE, "hinge").item()
    assert found == pytest.approx(reference.hinge(REAL.tolist(), FAKE.tolist()), rel=1e-9)
    assert discriminator_loss(torch.tensor([1.0, 9.0]), torch.tensor([-1.0, -9.0]), "hinge") == 0
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(-reference.mean(FAKE.tolist()))


def test_gradient_penalty_is_that_of_finite_differences():
    first, second = torch.randn(2, 5, 5, generator=RNG, dtype=torch.float64)
    points = torch.randn(7, 5, generator=RNG, dtype=torch.float64).requires_grad_()

    def judge(x):
        return (torch.tanh(x @ first) @ second).square().sum(-1)

    def plain(point):
        return judge(torch.tensor(point, dtype=torch.float64)).item()

    found = gradient_penalty(judge(points), points)
    assert found.item() == pytest.approx(reference.gradient_penalty(plain, points.tolist()), rel=1e-6)
    # It can itself be followed.
    assert torch.autograd.gradcheck(lambda x: gradient_penalty(judge(x), x), (points,))


def test_who_knows_nothing_pays_2_ln_2():
    assert discriminator_loss(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(2 * log(2))


def test_an_untrained_discriminator_knows_almost_nothing():
    with Streams(0).forked("init/guide"):
        network = FeatureDiscriminator(16, 4, hidden=(32, 16), spectral=True)
    features = torch.randn(2, 200, 16, generator=RNG)
    labels = torch.arange(200) % 4
    loss = discriminator_loss(network(features[0], labels)[0], network(features[1], labels)[0])
    assert loss.item() == pytest.approx(2 * log(2), rel=0.05)


def test_huge_logits_stay_finite():
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = discriminator_loss(huge, huge) + generator_loss(huge)
    loss.backward()
    assert loss.isfinite()
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("form", ["non_saturating", "hinge"])
@pytest.mark.parametrize(
    "loss",
    [discriminator_loss, lambda real, fake, form: generator_loss(fake, form)],
    ids=["discriminator", "generator"],
)
def test_gradients_are_those_of_the_values(loss, form):
    assert torch.autograd.gradcheck(
        partial(loss, form=form), (REAL.clone().requires_grad_(), FAKE.clone().requires_grad_())
    )
