"""Class-wise moments: the features of synthetic images get the mean and covariance of the condensed ones of a class.

Our choice, as the simplest thing a discriminator has to beat.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Guidance
from condkd_ray.methods.losses.discrepancy import class_moments
from condkd_ray.models.teacher import Teacher


@dataclass
class MomentsState:
    """The condensed features last seen with their labels, and the factor that gives them unit mean squared norm."""

    features: Tensor
    labels: Tensor
    scale: Tensor
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Moments(Guidance[MomentsState]):
    r"""Mean over classes of ||m_fake - m_real||^2 + c ||S_fake - S_real||_F^2, m means and S covariances of a batch.

    With one condensed image a class, the covariance is that of its augmentations.
    """

    ours = ("weight", "augment", "layer", "schedule", "covariance_weight")
    name: Literal["moments"] = "moments"
    weight: float = 100.0
    """As that of `mmd`; 300 was not better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""
    covariance_weight: float = 1.0
    """Weight of the covariances against the means; 0 matches class means alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.covariance_weight
        require(weight >= 0, "covariance_weight", weight, ">= 0")

    def init(self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams) -> MomentsState:
        """The scale from the whole condensed set."""
        return MomentsState(condensed, labels, condensed.square().sum(1).mean().rsqrt(), teacher.num_classes)

    def penalty(self, state: MomentsState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Weighted distance of both moments from those of the condensed features of the last look."""
        mean, covariance = self._distances(state, fake, labels)
        return mean + self.covariance_weight * covariance

    def update(
        self, state: MomentsState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Remember the condensed features under the newest augmentation."""
        state.features, state.labels = real, labels
        mean, covariance = self._distances(state, fake, labels)
        return {"mean": mean, "covariance": covariance}

    def _distances(self, state: MomentsState, fake: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return class_moments(
            state.scale * fake, labels, state.scale * state.features, state.labels, num_classes=state.num_classes
        )
