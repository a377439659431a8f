"""What PRE-DFKD's generative memory is trained on, and what its recalled latents are pulled to.

Letters: B batch, C channels, H W height and width, K classes, Z latent size. Source: `methods.md` 2.3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from condkd_ray.methods.losses.priors import class_prior, negative_entropy


def reconstruction(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of the pixels (B, C, H, W); of logits (B, K) it is the teacher-aware half."""
    return F.l1_loss(rebuilt, images)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp log_var) || N(0, I)), (B, Z) and (B, Z): a sum over the latent, the mean over the batch."""
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(1).mean()


def off_normal(latents: Tensor) -> Tensor:
    """How far the (B, Z) latents' moments are from 0 and 1: MSE of the batch's variances plus MSE of its means.

    The variance is the unbiased one, as in the released code. Of a single latent, which has none, it is the biased one,
    0 (our choice).
    """
    return (latents.var(0, correction=min(1, len(latents) - 1)) - 1).square().mean() + latents.mean(0).square().mean()


def recall_loss(logits: Tensor, latents: Tensor, *, ie_weight: float, oh_weight: float) -> Tensor:
    """What latents (B, Z) decoded to images of these logits (B, K) should lower: all classes, each certain, normal."""
    oh = class_prior(logits, logits.argmax(1)).mean()
    return ie_weight * negative_entropy(logits) + oh_weight * oh + off_normal(latents)
