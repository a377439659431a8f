"""Random real images: no condensation, and the control that every condensed set has to beat."""

from dataclasses import dataclass
from typing import Literal

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.condensation.condensation import Condensation, random_per_class


@dataclass(frozen=True, kw_only=True)
class RandomReal(Condensation):
    """`ipc` real images of each class, drawn by the trial's seed (the "few-shot" arm of the literature)."""

    name: Literal["random_real"] = "random_real"

    def condense(self, real: Samples, *, num_classes: int, rng: Streams, **_: object) -> Samples:
        """Random rows of each class; nested over `ipc`."""
        rows = random_per_class(real.labels, self.ipc, num_classes, rng["condensation"])
        return unseen(real.images[rows], real.labels[rows])
