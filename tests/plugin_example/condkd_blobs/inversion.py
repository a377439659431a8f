"""An inversion: a frozen dataclass with a name, its hyper-parameters, and the loss terms of a step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Smooth(Pixelwise):
    """Pixels that the teacher assigns to the wanted classes, with small differences between neighbours.

    `Pixelwise` starts from noise, takes `steps` Adam steps on `batch` images, clamps pixels and keeps the best images.
    Derive from `Host` for another way to make images, or from `Inversion` for a method that lowers no loss.
    """

    paper = "an example"
    ours = ("smooth_weight", "oh_weight", "oh_temperature")
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    name: Literal["smooth"] = "smooth"
    oh_weight: float = 1.0
    """Weight of the cross-entropy between the teacher's logits and the wanted classes."""
    oh_temperature: float = 1.0
    """Divides the teacher's logits in that term."""
    smooth_weight: float = 0.1
    """Weight of the mean squared difference of neighbouring pixels."""

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return two scalar loss terms; the field `<name>_weight` is the factor of each."""
        rows = (batch.images[:, :, 1:] - batch.images[:, :, :-1]).square().mean((1, 2, 3))
        columns = (batch.images[..., 1:] - batch.images[..., :-1]).square().mean((1, 2, 3))
        return {"oh": batch.oh, "smooth": batch.mean(rows + columns)}
