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


def test_the_losses_of_discriminator_and_generator_are_binary_cross_entropies():
    torch.testing.assert_close(
        discriminator_loss(REAL, FAKE).item(), reference.discriminator_loss(REAL.tolist(), FAKE.tolist())
    )
    torch.testing.assert_close(generator_loss(FAKE).item(), reference.generator_loss(FAKE.tolist()))


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothing_lowers_only_the_target_of_real_features(smoothing):
    found = discriminator_loss(REAL, FAKE, "non_saturating", smoothing).item()
    assert found == pytest.approx(reference.discriminator_loss(REAL.tolist(), FAKE.tolist(), smoothing), rel=1e-9)
    best = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    losses = torch.stack([discriminator_loss(logit[None], FAKE, "non_saturating", smoothing) for logit in best])
    assert best[losses.argmin()].sigmoid().item() == pytest.approx(1 - smoothing, abs=2e-3)


def test_hinge_loss_is_0_beyond_a_margin_of_1():
    found = discriminator_loss(REAL, FAKE, "hinge").item()
    assert found == pytest.approx(reference.hinge(REAL.tolist(), FAKE.tolist()), rel=1e-9)
    assert discriminator_loss(torch.tensor([1.0, 9.0]), torch.tensor([-1.0, -9.0]), "hinge") == 0
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(-reference.mean(FAKE.tolist()))


def test_the_gradient_penalty_equals_that_of_finite_differences():
    first, second = torch.randn(2, 5, 5, generator=RNG, dtype=torch.float64)
    points = torch.randn(7, 5, generator=RNG, dtype=torch.float64).requires_grad_()

    def logit_at(x):
        return (torch.tanh(x @ first) @ second).square().sum(-1)

    def plain(point):
        return logit_at(torch.tensor(point, dtype=torch.float64)).item()

    found = gradient_penalty(logit_at(points), points)
    assert found.item() == pytest.approx(reference.gradient_penalty(plain, points.tolist()), rel=1e-6)
    # The penalty itself is differentiable.
    assert torch.autograd.gradcheck(lambda x: gradient_penalty(logit_at(x), x), (points,))


def test_logits_of_0_have_a_loss_of_2_ln_2():
    assert discriminator_loss(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(2 * log(2))


def test_an_untrained_discriminator_has_a_loss_near_2_ln_2():
    with Streams(0).forked("init/guide"):
        network = FeatureDiscriminator(16, 4, hidden=(32, 16), spectral=True)
    features = torch.randn(2, 200, 16, generator=RNG)
    labels = torch.arange(200) % 4
    loss = discriminator_loss(network(features[0], labels)[0], network(features[1], labels)[0])
    assert loss.item() == pytest.approx(2 * log(2), rel=0.05)


def test_losses_of_huge_logits_are_finite():
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
def test_gradients_equal_finite_differences(loss, form):
    assert torch.autograd.gradcheck(
        partial(loss, form=form), (REAL.clone().requires_grad_(), FAKE.clone().requires_grad_())
    )
