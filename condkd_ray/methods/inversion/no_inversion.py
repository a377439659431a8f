"""No inversion: for arms that distil from condensed or real images alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from condkd_ray.core.method import Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unseen
from condkd_ray.methods.interfaces import Targets
from condkd_ray.methods.inversion.inversion import Inversion
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class NoInversion(Inversion[None]):
    """Makes no images; the distiller's condensed share must be 1."""

    name: Literal["none"] = "none"
    pixel_space: ClassVar[PixelSpace] = "unit"
    hears = "nothing"

    @property
    def images_per_round(self) -> int:
        """None at all."""
        return 0

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing to keep."""

    def synthesize(self, state: None, targets: Targets, *, teacher: Teacher, **_: object) -> tuple[Samples, Metrics]:
        """An empty batch."""
        return unseen(targets.labels.new_zeros(0, *teacher.image_shape).float(), targets.labels[:0]), {}
