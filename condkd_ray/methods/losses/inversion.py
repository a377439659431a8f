"""Loss terms of the inversions: expected properties of an image, and its adversarial difficulty for the student.

Terms of images alone: class, BN statistics, entropy, activation, smoothness. Formulas follow the released code of the
methods that are named. In segmentation, logits are (B, K, H, W), and terms of one image are means over its pixels; this
is our choice. Letters: B batch, C channels, H W height and width, K classes, D features, L BN layers, S
channels of all BN layers together.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.losses.kd import divergence, per_image

JsReduction = Literal["mean", "batchmean"]
"""Reduction of a divergence over the classes: the mean, or the sum (PyTorch's name for it is `batchmean`)."""


def class_prior(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy of softmax(logits / temperature), (B, K) to (B,); DAFL, CMI and Fast call it `oh`.

    `wanted`: classes (B,), or soft targets (B, K), probabilities at the same temperature. In segmentation, classes (B,
    H, W), of which pixels without a label are left out.
    """
    losses = F.cross_entropy(logits / temperature, wanted, reduction="none", ignore_index=UNLABELLED)
    return per_image(losses, wanted)


def bn_distance(seen: Tensor, running: Tensor, layers: Tensor, first: float = 1.0) -> Tensor:
    """Return the sum over BN layers of ||running variance - var|| + ||running mean - mean||, Euclidean norms; a scalar.

    `seen` and `running` (2, S): means and variances of all layers side by side; `layers` (L, S): 1 if a channel belongs
    to a layer, else 0. The first layer has the factor `first` (DeepInversion on ImageNet: 10, DFQ: 5).
    """
    # All layers at once, because one by one they are dozens of launches on a GPU.
    norms = torch.linalg.vector_norm((running - seen)[:, None] * layers, dim=2).sum(0)
    return norms.sum() if first == 1 else norms.sum() + (first - 1) * norms[0]


def mix_bn(seen: Tensor, memory: Tensor | None, momentum: float) -> Tensor:
    """Return (1 - momentum) times this batch's statistics plus `momentum` times the running ones (Fast).

    Without running statistics (`memory` None) it returns the batch's.
    """
    return seen if memory is None else torch.lerp(seen, memory, momentum)


def negative_entropy(logits: Tensor) -> Tensor:
    """Return sum p log10 p of the mean class distribution over images (and pixels), a scalar: minimal if p is uniform.

    `logits`: (B, K) or (B, K, H, W).

    A term of DAFL (`ie`).
    """
    mean = F.softmax(logits, dim=1).mean((0, *range(2, logits.ndim)))
    return (mean * mean.clamp_min(1e-12).log()).sum() / math.log(10)


def entropy(logits: Tensor) -> Tensor:
    """Return -sum p log10 p of each image's class distribution, (B, K) to (B,): 0 if it is certain (DFQ's ICE)."""
    return -(F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(1) / math.log(10)


def negative_activation(features: Tensor) -> Tensor:
    """Return minus the mean absolute feature, a scalar: real images have large features (DAFL's `a`).

    `features`: (B, D) or (B, D, h, w).
    """
    return -features.abs().mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the sum of the L2 norms of the four neighbour differences over the whole batch (DeepInversion's TV_L2)."""
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
        images[:, :, :-1, 1:] - images[:, :, 1:, :-1],
    )
    # The norm's gradient is NaN at exactly 0 (a constant image), so a small constant is added to the square.
    return torch.stack([(d.square().sum() + 1e-12).sqrt() for d in differences]).sum()


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Return minus KL(teacher || student) if both predict the same class, else 0; (B, K) logits to (B,).

    This term makes images harder for the student, but only as long as their class stays (CMI, Fast, NAYER: `adv`).
    Gradients flow through both logits, as in the released code of all three.
    """
    agree = student.argmax(1) == teacher.argmax(1)
    return -(divergence(student, teacher) * agree)


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, temperature: float = 3.0, reduction: JsReduction = "mean"
) -> Tensor:
    """Return the Jensen-Shannon divergence of softened predictions as in PRE-DFKD's code; (B, K) logits to (B,).

    Half the sum of KL(M || P) and KL(M || Q), where P and Q are the probabilities of teacher and student and M their
    mean, all clamped to [0.01, 0.99]. `batchmean` sums over the classes; `mean`, as in PRE-DFKD's code, divides the sum
    by K. Gradients flow through both logits: DeepInversion's scripts detach neither, PRE-DFKD's code detaches the
    teacher's.
    """
    p, q = (F.softmax(logits.float() / temperature, dim=1) for logits in (teacher, student))
    p, q, middle = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    terms = middle * (middle.log() - (p.log() + q.log()) / 2)
    return terms.mean(1) if reduction == "mean" else terms.sum(1)
