"""Terms that inversions minimise: what is expected of an image before any student sees it, and what surprises one.

Of images alone: class, BN statistics, entropy, activation, smoothness. Letters: B batch, C channels, H W height and
width, K classes, D features. Sources: `peers.md` A.0, A.1, A.4, A.5, `methods.md` 6.1 (CMI, Fast), 2.3 (PRE-DFKD).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.methods.losses.kd import divergence

BnStatistics = Sequence[tuple[Tensor, Tensor]]
JsReduction = Literal["mean", "batchmean"]


def class_prior(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of softmax(logits / temperature), (B, K) to (B,); `oh` in the official codes.

    `wanted`: classes (B,), or soft targets (B, K), probabilities at the same temperature.
    """
    return F.cross_entropy(logits / temperature, wanted, reduction="none")


def bn_distance(seen: BnStatistics, running: BnStatistics, first: float = 1.0) -> Tensor:
    """Sum over BN layers of ||running variance - var|| + ||running mean - mean||, Euclidean norms; a scalar.

    The first layer's share counts `first` times (DeepInversion on ImageNet: 10, DFQ: 5).
    """
    distances = [
        torch.linalg.vector_norm(var - running_var) + torch.linalg.vector_norm(mean - running_mean)
        for (mean, var), (running_mean, running_var) in zip(seen, running, strict=True)
    ]
    return torch.stack([first * distances[0], *distances[1:]]).sum()


def mix_bn(seen: BnStatistics, memory: BnStatistics | None, momentum: float) -> BnStatistics:
    """(1 - momentum) of this batch's statistics and `momentum` of the remembered ones (Fast); all of it at first."""
    if memory is None:
        return seen
    return [
        (torch.lerp(mean, old_mean, momentum), torch.lerp(var, old_var, momentum))
        for (mean, var), (old_mean, old_var) in zip(seen, memory, strict=True)
    ]


def negative_entropy(logits: Tensor) -> Tensor:
    """Sum p log10 p of the batch's mean class distribution: minimal where classes are used equally (DAFL's `ie`)."""
    mean = F.softmax(logits, dim=1).mean(0)
    return (mean * mean.clamp_min(1e-12).log()).sum() / math.log(10)


def entropy(logits: Tensor) -> Tensor:
    """-sum p log10 p of each image's class distribution, (B, K) to (B,): minimal where it is certain (DFQ's ICE)."""
    return -(F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(1) / math.log(10)


def negative_activation(features: Tensor) -> Tensor:
    """Minus the mean absolute feature, (B, D) to a scalar: real images excite the teacher (DAFL's `a`)."""
    return -features.abs().mean()


def total_variation(images: Tensor) -> Tensor:
    """Sum of the L2 norms of the four neighbour differences over the whole batch (DeepInversion's TV_L2)."""
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
        images[:, :, :-1, 1:] - images[:, :, 1:, :-1],
    )
    # The norm's gradient is NaN at exactly 0 (a constant image), so the square is kept off it.
    return torch.stack([(d.square().sum() + 1e-12).sqrt() for d in differences]).sum()


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus KL(teacher || student) where both still name the same class, else 0; (B, K) logits to (B,).

    It pushes an image away from what the student knows, but only while its class holds (CMI, Fast, NAYER: `adv`).
    Differentiable in both answers: the released codes of all three detach neither.
    """
    agree = student.argmax(1) == teacher.argmax(1)
    return -(divergence(student, teacher) * agree)


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, temperature: float = 3.0, reduction: JsReduction = "mean"
) -> Tensor:
    """Jensen-Shannon divergence of softened answers as PRE-DFKD computes it; (B, K) logits to (B,).

    Half the sum of KL(M || P) and KL(M || Q), P and Q the probabilities of teacher and student, M their mean, all
    clamped to [0.01, 0.99]. `batchmean` sums over the classes; `mean`, as released, divides that by K. Differentiable
    in both answers: DeepInversion's released codes detach neither, PRE-DFKD's the teacher's.
    """
    p, q = (F.softmax(logits.float() / temperature, dim=1) for logits in (teacher, student))
    p, q, middle = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    terms = middle * (middle.log() - (p.log() + q.log()) / 2)
    return terms.mean(1) if reduction == "mean" else terms.sum(1)
