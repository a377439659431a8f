"""Class-wise maximum mean discrepancy between synthetic and condensed features: guidance without a discriminator.

PGDI uses class-wise MMD on few-shot images (`peers.md` A.13; its released code carries no gradient). Kernel,
bandwidths and layer are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.guidance.guidance import Guidance
from condkd_ray.streams import Streams
from condkd_ray.teacher import Observation, Teacher

BANDWIDTHS = (0.5, 1.0, 2.0)
"""Kernel scales in units of the median distance."""


@dataclass
class MmdState:
    """The condensed features last seen with their labels, and the median squared distance among them."""

    features: Tensor
    labels: Tensor
    median: Tensor
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Mmd(Guidance[MmdState]):
    """Squared MMD of each class, mean over the classes present, under a sum of Gaussian kernels of the features."""

    name: Literal["mmd"] = "mmd"

    def init(self, teacher: Teacher, condensed: Observation, labels: Tensor, rng: Streams) -> MmdState:
        """Bandwidth from the median distance of the whole condensed set."""
        features = condensed.features
        distances = squared_distances(features, features)
        apart = distances[torch.triu_indices(len(features), len(features), offset=1).unbind()]
        return MmdState(features, labels, apart.median(), teacher.num_classes)

    def penalty(self, state: MmdState, seen: Observation, labels: Tensor) -> Tensor:
        """Mean class-wise squared MMD to the condensed features of the last look."""
        return self._mmd(state, seen.features, labels)

    def update(self, state: MmdState, fake: Observation, real: Observation, labels: Tensor) -> dict[str, Tensor]:
        """Remember the condensed features under the newest augmentation."""
        state.features, state.labels = real.features, labels
        return {"mmd": self._mmd(state, fake.features, labels)}

    def _mmd(self, state: MmdState, features: Tensor, labels: Tensor) -> Tensor:
        return class_mmd(
            features, labels, state.features, state.labels, num_classes=state.num_classes, median=state.median
        )


def class_mmd(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int, median: Tensor
) -> Tensor:
    """Mean over classes present on both sides of the biased squared MMD; (N, D), (N,), (M, D), (M,) to a scalar.

    In full precision even under autocast: differences of bfloat16 products would drown it.
    """
    with torch.autocast(left.device.type, enabled=False):
        return _class_mmd(left, left_labels, right, right_labels, num_classes, median)


def _class_mmd(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, num_classes: int, median: Tensor
) -> Tensor:
    left_hot, right_hot = (F.one_hot(x, num_classes).to(left.dtype) for x in (left_labels, right_labels))
    present = (left_hot.sum(0) > 0) & (right_hot.sum(0) > 0)
    a = left_hot / left_hot.sum(0).clamp_min(1) * present
    b = right_hot / right_hot.sum(0).clamp_min(1) * present

    def mean_kernel(x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        squared = squared_distances(x, y)
        kernel = torch.stack([torch.exp(-squared / (scale * median)) for scale in BANDWIDTHS]).sum(0)
        return (u * (kernel @ v)).sum()

    total = mean_kernel(left, a, left, a) + mean_kernel(right, b, right, b) - 2 * mean_kernel(left, a, right, b)
    return total / present.sum().clamp_min(1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D), (M, D) to (N, M). By the product formula: its gradient at distance 0 is 0, not NaN as the root's."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
