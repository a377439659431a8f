"""No guidance: the host runs as published."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from condkd_ray.core.method import Method
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.interfaces import Guide, Unguided
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Method):
    """Member of the family, so that nobody asks whether there is a guidance."""

    name: Literal["none"] = "none"
    layers: ClassVar[tuple[str, ...]] = ()

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams) -> None:
        """No state."""

    def bind(self, state: None, **_: object) -> Guide:
        """A guide that says nothing."""
        return Unguided()

    def read(self, guide: Guide) -> dict[str, float]:
        """Nothing was logged."""
        return {}
