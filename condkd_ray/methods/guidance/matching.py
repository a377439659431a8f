"""Guidance without a discriminator: matches the distributions of synthetic and condensed features, class by class.

- Maximum mean discrepancy: PGDI matches few-shot images by the class-wise MMD of features, although the term in the
  released code of PGDI carries no gradient. Kernel, bandwidths and layer are our choice.
- Mean and covariance: our choice, the simplest alternative to a discriminator.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.checkpoint import transient
from condkd_ray.core.compilation import whole
from condkd_ray.core.rng import Streams
from condkd_ray.core.task import BOTH
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
    """The latest condensed features with their labels."""

    features: Tensor
    labels: Tensor


State = TypeVar("State", bound=CondensedFeatures)
Side = tuple[Tensor, Tensor]
"""Features (N, D) with labels (N,)."""
SHARED = (
    *("weight", "augment", "layer", "stages", "stages_weight", "alignment", "mixup", "noise", "schedule"),
    *("from_guides", "regions"),
)


class Matching(Guidance[State]):
    """Base class of the guidances that compare the fakes with the latest batch of condensed features."""

    @abstractmethod
    def distances(self, state: State, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return scalar distances by name, each differentiable in `fake`."""

    def update(
        self, state: State, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Store the condensed features under the newest augmentation; returns the distances to them."""
        state.features, state.labels = real, labels
        return self.distances(state, fake, labels)


@dataclass
class MmdState(CondensedFeatures):
    """Adds the median squared distance among the condensed features; for several layers (L,)."""

    median: Tensor
    num_classes: int
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Mmd(Matching[MmdState]):
    """Squared MMD per class, averaged over the classes present, under a sum of Gaussian kernels of the features.

    With several layers, the weighted sum over layers, each with its own bandwidth.
    """

    tasks = BOTH
    ours = SHARED
    name: Literal["mmd"] = "mmd"
    weight: float = 100.0
    """Chosen of 10 and 100 on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> MmdState:
        """Return a state with bandwidths from the median distance of the whole condensed set."""
        medians = torch.stack([median_distance(part) for part in layout.split(condensed)]).squeeze(0)
        return MmdState(condensed, labels, medians, teacher.num_classes, layout)

    def penalty(self, state: MmdState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return the mean class-wise squared MMD to the latest condensed features."""
        return self.distances(state, fake, labels)["mmd"]

    def distances(self, state: MmdState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `mmd`."""
        sides = (fake, labels), (state.features, state.labels)
        return {"mmd": mmd(self, state.layout, *sides, state.median, state.num_classes)}


@whole
def mmd(guidance: Mmd, layout: Layout, left: Side, right: Side, medians: Tensor, num_classes: int) -> Tensor:
    """Return the squared MMD of `layer` plus that of each stage times its weight; a scalar."""
    distance = marginal_mmd if guidance.alignment == "marginal" else class_mmd
    pairs = zip(layout.split(left[0]), layout.split(right[0]), medians.reshape(-1), strict=True)
    first, *others = [distance(x, left[1], y, right[1], num_classes=num_classes, median=m) for x, y, m in pairs]
    for other in others:
        first = first + guidance.stages_weight * other
    return first


@dataclass
class MomentsState(CondensedFeatures):
    """Adds the factor that scales the condensed features to unit mean squared norm."""

    scale: Tensor
    num_classes: int
    layout: Layout = transient(default=ONE_LAYER)


@dataclass(frozen=True, kw_only=True)
class Moments(Matching[MomentsState]):
    """Mean over classes of ||m_fake - m_real||^2 + c ||S_fake - S_real||_F^2, m means and S covariances of a batch.

    With one condensed image per class, S_real is the covariance of that image's augmentations. With several layers, the
    weighted sum over layers; stages have a covariance term only with `stage_covariances`.
    """

    tasks = BOTH
    ours = (*SHARED, "covariance_weight", "stage_covariances")
    name: Literal["moments"] = "moments"
    weight: float = 100.0
    """The weight of `mmd`; 300 was not better on CIFAR-10's validation images, one seed: `experiments/LOG.md`."""
    covariance_weight: float = 1.0
    """Weight of the covariances relative to the means; 0 matches class means only."""
    stage_covariances: bool = False
    """If true, covariances of the stages are compared too, in addition to those of `layer`."""

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> MomentsState:
        """Return a state with the scale of the whole condensed set."""
        return MomentsState(condensed, labels, unit_norm(layout.split(condensed)[0]), teacher.num_classes, layout)

    def penalty(self, state: MomentsState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return the weighted distance of both moments from those of the latest condensed features."""
        found = self.distances(state, fake, labels)
        return found["mean"] + self.covariance_weight * found["covariance"]

    def distances(self, state: MomentsState, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `mean` and `covariance`."""
        left, right = state.scale * fake, state.scale * state.features
        sides = (left, labels), (right, state.labels)
        mean, covariance = moments(self, state.layout, *sides, state.num_classes)
        return {"mean": mean, "covariance": covariance}


@whole
def moments(guidance: Moments, layout: Layout, left: Side, right: Side, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the distances of both moments, of `layer` plus each stage times its weight; scalars."""
    distance = marginal_moments if guidance.alignment == "marginal" else class_moments
    pairs = zip(layout.split(left[0]), layout.split(right[0]), strict=True)
    (mean, covariance), *others = [distance(x, left[1], y, right[1], num_classes=num_classes) for x, y in pairs]
    for other_mean, other_covariance in others:
        mean = mean + guidance.stages_weight * other_mean
        if guidance.stage_covariances:
            covariance = covariance + guidance.stages_weight * other_covariance
    return mean, covariance


def unit_norm(features: Tensor) -> Tensor:
    """Return the factor that scales features (N, D) to unit mean squared norm, a scalar."""
    return features.square().sum(1).mean().rsqrt()
