"""Balanced labels: every class equally often, up to one."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.rng import Streams
from condkd_ray.methods.interfaces import Targets
from condkd_ray.methods.targets.targets import TargetSource
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Balanced(TargetSource):
    """Each class floor(n / K) or ceil(n / K) times, in random order; which classes get one more is drawn too.

    Our choice: the hosts draw labels independently (CMI, Fast) or balanced (NAYER); balanced has less variance.
    """

    name: Literal["balanced"] = "balanced"

    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """`count` labels."""
        return Targets(balanced_labels(count, teacher.num_classes, rng))


def balanced_labels(count: int, num_classes: int, rng: Streams) -> Tensor:
    """(count,) int64 labels from stream `targets`."""
    generator = rng["targets"]
    classes = torch.randperm(num_classes, generator=generator, device=rng.device)
    labels = classes.repeat(-(-count // num_classes))[:count]
    return labels[torch.randperm(count, generator=generator, device=rng.device)]
