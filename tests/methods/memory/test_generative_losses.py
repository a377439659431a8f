import pytest
import torch
from reference import vae as reference

from condkd_ray.methods.memory.generative import divergence, off_normal, recall_loss

RNG = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def close(got, wanted):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_divergence_equals_the_plain_loop():
    mean, log_var = normal(5, 3), normal(5, 3)
    close(divergence(mean, log_var), reference.divergence(mean.tolist(), log_var.tolist()))


def test_divergence_equals_pytorchs_and_is_0_at_the_prior():
    mean, log_var = normal(4, 6), normal(4, 6)
    made = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(
        divergence(mean, log_var), torch.distributions.kl_divergence(made, prior).sum(1).mean(), rtol=1e-9, atol=0
    )
    close(divergence(torch.zeros(4, 6).double(), torch.zeros(4, 6).double()), 0.0)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_off_normal_equals_the_plain_loop(rows):
    latents = 2 * normal(rows, 4) + 1
    close(off_normal(latents), reference.off_normal(latents.tolist()))


def test_off_normal_is_0_for_mean_0_and_unbiased_variance_1_and_is_defined_for_a_single_latent():
    side = 0.5**0.5
    close(off_normal(torch.tensor([[side, -side], [-side, side]], dtype=torch.float64)), 0.0)
    close(off_normal(torch.tensor([[2.0, 0.0]]).double()), 1.0 + (4.0 + 0.0) / 2)


@pytest.mark.parametrize(("ie", "oh"), [(5.0, 1.0), (0.0, 1.0), (2.0, 0.0)])
def test_recall_loss_equals_the_plain_loop(ie, oh):
    logits, latents = 3 * normal(9, 5), normal(9, 4)
    wanted = reference.recall_loss(logits.tolist(), latents.tolist(), ie, oh)
    close(recall_loss(logits, latents, ie_weight=ie, oh_weight=oh), wanted)
