"""No guidance: the host runs as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from condkd_ray.core.method import Method
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.guidance.guidance import HostAugment
from condkd_ray.methods.interfaces import Guide
from condkd_ray.models.teacher import Observation, Teacher


class Unguided:
    """A guide that says nothing and learns nothing."""

    layers: tuple[str, ...] = ()

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Zero."""
        return seen.logits.new_zeros(())

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Method):
    """Member of the family, so that nobody asks whether there is a guidance."""

    name: Literal["none"] = "none"
    layers: ClassVar[tuple[str, ...]] = ()

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams) -> None:
        """No state."""

    def bind(
        self,
        state: None,
        *,
        teacher: Teacher,
        condensed: Samples | None,
        host_augment: HostAugment,
        rng: Streams,
        progress: float = 0.0,
    ) -> Guide:
        """A guide that says nothing."""
        return Unguided()

    def read(self, guide: Guide) -> dict[str, float]:
        """Nothing was logged."""
        return {}
