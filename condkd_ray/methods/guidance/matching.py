"""Guidance without a discriminator: each class's synthetic features are to be distributed as its condensed ones.

- Maximum mean discrepancy: PGDI uses the class-wise one on few-shot images (`peers.md` A.13; its released code carries
  no gradient). Kernel, bandwidths and layer are our choice.
- Mean and covariance: our choice, as the simplest thing a discriminator has to beat.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.compilation import whole
from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Guidance
from condkd_ray.methods.losses.discrepancy import class_mmd, class_moments, median_distance
from condkd_ray.models.teacher import Teacher


@dataclass
class Seen:
    """The condensed features last seen with their labels."""

    features: Tensor
    labels: Tensor


State = TypeVar("State", bound=Seen)
whole_mmd, whole_moments = whole(class_mmd), whole(class_moments)


class Matching(Guidance[State]):
    """Base of the guidances that compare features with the condensed ones of the last look."""

    @abstractmethod
    def distances(self, state: State, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalars by name, each differentiable in `fake`."""

    def update(
        self, state: State, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Remember the condensed features under the newest augmentation; logs the distances to them."""
        state.features, state.labels = real, labels
        return self.distances(state, fake, labels)


@dataclass
class MmdState(Seen):
    """With the median squared distance among the condensed features."""

    median: Tensor
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Mmd(Matching[MmdState]):
    """Squared MMD of each class, mean over the classes present, under a sum of Gaussian kernels of the features."""

    ours = ("weight", "augment", "layer", "schedule", "from_guides")
    name: Literal["mmd"] = "mmd"
    weight: float = 100.0
    """Of 10 and 100 the better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""

    def init(self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams) -> MmdState:
        """Bandwidth from the median distance of the whole condensed set."""
        return MmdState(condensed, labels, median_distance(condensed), teacher.num_classes)

    def penalty(self, state: MmdState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Mean class-wise squared MMD to the condensed features of the last look."""
        return self.distances(state, fake, labels)["mmd"]

    def distances(self, state: MmdState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`mmd`."""
        scale = {"num_classes": state.num_classes, "median": state.median}
        return {"mmd": whole_mmd(fake, labels, state.features, state.labels, **scale)}


@dataclass
class MomentsState(Seen):
    """With the factor that gives the condensed features unit mean squared norm."""

    scale: Tensor
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Moments(Matching[MomentsState]):
    r"""Mean over classes of ||m_fake - m_real||^2 + c ||S_fake - S_real||_F^2, m means and S covariances of a batch.

    With one condensed image a class, the covariance is that of its augmentations.
    """

    ours = ("weight", "augment", "layer", "schedule", "from_guides", "covariance_weight")
    name: Literal["moments"] = "moments"
    weight: float = 100.0
    """As that of `mmd`; 300 was not better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""
    covariance_weight: float = 1.0
    """Weight of the covariances against the means; 0 matches class means alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.covariance_weight >= 0, "covariance_weight", self.covariance_weight, ">= 0")

    def init(self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams) -> MomentsState:
        """The scale from the whole condensed set."""
        return MomentsState(condensed, labels, condensed.square().sum(1).mean().rsqrt(), teacher.num_classes)

    def penalty(self, state: MomentsState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Weighted distance of both moments from those of the condensed features of the last look."""
        found = self.distances(state, fake, labels)
        return found["mean"] + self.covariance_weight * found["covariance"]

    def distances(self, state: MomentsState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`mean` and `covariance`."""
        left, right = state.scale * fake, state.scale * state.features
        mean, covariance = whole_moments(left, labels, right, state.labels, num_classes=state.num_classes)
        return {"mean": mean, "covariance": covariance}
