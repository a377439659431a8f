"""A guidance: a penalty on the distance of synthetic and condensed images in the teacher's features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Guidance
from condkd_ray.methods.guidance.guidance import ONE_LAYER, GuidanceState, Layout
from condkd_ray.models.teacher import Teacher


@dataclass
class Means(GuidanceState):
    """The state: mean condensed features of each class (K, D). Checkpoints contain the tensors of a state."""

    means: Tensor


@dataclass(frozen=True, kw_only=True)
class ClassMeans(Guidance[Means]):
    """Mean squared distance between each image's features and the mean condensed features of its class."""

    uses_condensed_batches: ClassVar[bool] = False
    ours = ("weight", "augment", "layer", "stages", "stages_weight", "alignment", "mixup", "noise", "schedule")
    name: Literal["class_means"] = "class_means"

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> Means:
        """Return the class means of condensed features (N, D) with `labels` (N,)."""
        sums = condensed.new_zeros(teacher.num_classes, condensed.shape[1]).index_add(0, labels, condensed)
        counts = labels.bincount(minlength=teacher.num_classes).clamp(min=1)
        return Means(means=sums / counts[:, None])

    def penalty(self, state: Means, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return a scalar, differentiable in the features `fake` (B, D) of images of classes `labels` (B,)."""
        return (fake - state.means[labels]).square().mean()

    def update(
        self, state: Means, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return a value to log. This guidance has nothing to learn."""
        return {"distance": (fake - state.means[labels]).square().mean()}
