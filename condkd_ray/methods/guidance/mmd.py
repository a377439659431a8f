"""Class-wise maximum mean discrepancy between synthetic and condensed features: guidance without a discriminator.

PGDI uses class-wise MMD on few-shot images (`peers.md` A.13; its released code carries no gradient). Kernel,
bandwidths and layer are our choice.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Guidance
from condkd_ray.methods.losses.discrepancy import class_mmd, median_distance
from condkd_ray.models.teacher import Teacher


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

    ours = ("weight", "augment", "layer", "schedule")
    name: Literal["mmd"] = "mmd"
    weight: float = 100.0
    """Of 10 and 100 the better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""

    def init(self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams) -> MmdState:
        """Bandwidth from the median distance of the whole condensed set."""
        return MmdState(condensed, labels, median_distance(condensed), teacher.num_classes)

    def penalty(self, state: MmdState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Mean class-wise squared MMD to the condensed features of the last look."""
        return self._mmd(state, fake, labels)

    def update(
        self, state: MmdState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Remember the condensed features under the newest augmentation."""
        state.features, state.labels = real, labels
        return {"mmd": self._mmd(state, fake, labels)}

    def _mmd(self, state: MmdState, features: Tensor, labels: Tensor) -> Tensor:
        return class_mmd(
            features, labels, state.features, state.labels, num_classes=state.num_classes, median=state.median
        )
