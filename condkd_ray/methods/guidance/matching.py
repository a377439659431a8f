"""Guidance without a discriminator: synthetic features are to be distributed as condensed ones, class by class.

- Maximum mean discrepancy: PGDI uses the class-wise one on few-shot images (`peers.md` A.13; its released code carries
  no gradient). Kernel, bandwidths and layer are our choice.
- Mean and covariance: our choice, as the simplest thing a discriminator has to beat.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.checkpoint import transient
from condkd_ray.core.compilation import whole
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import ONE_LAYER, Guidance, GuidanceState, Layout
from condkd_ray.methods.losses.discrepancy import (
    class_mmd,
    class_moments,
    marginal_mmd,
    marginal_moments,
    median_distance,
)
from condkd_ray.models.teacher import Teacher


@dataclass
class CondensedFeatures(GuidanceState):
    """The condensed features last seen with their labels."""

    features: Tensor
    labels: Tensor


State = TypeVar("State", bound=CondensedFeatures)
Side = tuple[Tensor, Tensor]
"""Features (N, D) with labels (N,)."""
SHARED = (
    *("weight", "augment", "layer", "stages", "stages_weight", "alignment", "mixup", "noise", "schedule"),
    "from_guides",
)


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
class MmdState(CondensedFeatures):
    """With the median squared distance among the condensed features, of several layers (L,)."""

    median: Tensor
    num_classes: int
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Mmd(Matching[MmdState]):
    """Squared MMD of each class, mean over the classes present, under a sum of Gaussian kernels of the features.

    Over several layers the sum of theirs, each with a bandwidth of its own.
    """

    ours = SHARED
    name: Literal["mmd"] = "mmd"
    weight: float = 100.0
    """Of 10 and 100 the better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> MmdState:
        """Bandwidth from the median distance of the whole condensed set."""
        medians = torch.stack([median_distance(part) for part in layout.split(condensed)]).squeeze(0)
        return MmdState(condensed, labels, medians, teacher.num_classes, layout)

    def penalty(self, state: MmdState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Mean class-wise squared MMD to the condensed features of the last look."""
        return self.distances(state, fake, labels)["mmd"]

    def distances(self, state: MmdState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`mmd`."""
        sides = (fake, labels), (state.features, state.labels)
        return {"mmd": mmd(self, state.layout, *sides, state.median, state.num_classes)}


@whole
def mmd(guidance: Mmd, layout: Layout, left: Side, right: Side, medians: Tensor, num_classes: int) -> Tensor:
    """Squared MMD of `layer`, and of each stage times its weight; a scalar."""
    distance = marginal_mmd if guidance.alignment == "marginal" else class_mmd
    pairs = zip(layout.split(left[0]), layout.split(right[0]), medians.reshape(-1), strict=True)
    first, *others = [distance(x, left[1], y, right[1], num_classes=num_classes, median=m) for x, y, m in pairs]
    for other in others:
        first = first + guidance.stages_weight * other
    return first


@dataclass
class MomentsState(CondensedFeatures):
    """With the factor that gives the condensed features unit mean squared norm."""

    scale: Tensor
    num_classes: int
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Moments(Matching[MomentsState]):
    r"""Mean over classes of ||m_fake - m_real||^2 + c ||S_fake - S_real||_F^2, m means and S covariances of a batch.

    With one condensed image a class, the covariance is that of its augmentations. Over several layers the sum of
    theirs, of which stages have covariances only where that is asked for.
    """

    ours = (*SHARED, "covariance_weight", "stage_covariances")
    name: Literal["moments"] = "moments"
    weight: float = 100.0
    """As that of `mmd`; 300 was not better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""
    covariance_weight: float = 1.0
    """Weight of the covariances against the means; 0 matches class means alone."""
    stage_covariances: bool = False
    """Whether covariances of the stages are compared too, beside those of `layer`."""

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> MomentsState:
        """The scale from the whole condensed set."""
        return MomentsState(condensed, labels, unit_norm(layout.split(condensed)[0]), teacher.num_classes, layout)

    def penalty(self, state: MomentsState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Weighted distance of both moments from those of the condensed features of the last look."""
        found = self.distances(state, fake, labels)
        return found["mean"] + self.covariance_weight * found["covariance"]

    def distances(self, state: MomentsState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`mean` and `covariance`."""
        left, right = state.scale * fake, state.scale * state.features
        sides = (left, labels), (right, state.labels)
        mean, covariance = moments(self, state.layout, *sides, state.num_classes)
        return {"mean": mean, "covariance": covariance}


@whole
def moments(guidance: Moments, layout: Layout, left: Side, right: Side, num_classes: int) -> tuple[Tensor, Tensor]:
    """Distances of both moments, of `layer`, and of each stage times its weight; scalars."""
    distance = marginal_moments if guidance.alignment == "marginal" else class_moments
    pairs = zip(layout.split(left[0]), layout.split(right[0]), strict=True)
    (mean, covariance), *others = [distance(x, left[1], y, right[1], num_classes=num_classes) for x, y in pairs]
    for other_mean, other_covariance in others:
        mean = mean + guidance.stages_weight * other_mean
        if guidance.stage_covariances:
            covariance = covariance + guidance.stages_weight * other_covariance
    return mean, covariance


def unit_norm(features: Tensor) -> Tensor:
    """The factor that gives features (N, D) unit mean squared norm, a scalar."""
    return features.square().sum(1).mean().rsqrt()
