"""All real images: the upper reference, distillation with the data that is not there."""

from dataclasses import dataclass
from typing import Literal

from condkd_ray.core.method import require
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.condensation.condensation import Condensation


@dataclass(frozen=True, kw_only=True)
class AllReal(Condensation):
    """Every real image, class after class. Not nested in anything, and as many of each class as there are."""

    name: Literal["all_real"] = "all_real"
    ipc: Literal[0] = 0
    """It has none of its own: 0 stands for "all"."""

    def __post_init__(self) -> None:
        require(self.ipc == 0, "condensation.ipc of all_real", self.ipc, "0, which stands for all images")

    def condense(self, real: Samples, **_: object) -> Samples:
        """All rows, sorted by class."""
        rows = real.labels.argsort(stable=True)
        return unseen(real.images[rows], real.labels[rows])
