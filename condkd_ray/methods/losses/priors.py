"""What is expected of an image before any student sees it: class, BN statistics, entropy, activation, smoothness.

Letters: B batch, C channels, H W height and width, K classes, D features. Sources: `peers.md` A.0, A.1, A.4, A.5.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BnStatistics = Sequence[tuple[Tensor, Tensor]]


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
