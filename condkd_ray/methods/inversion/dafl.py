"""DAFL (Chen et al., ICCV 2019, "Data-free learning of student networks"), after the authors' released code."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.inversion import negative_activation, negative_entropy
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dafl(Unconditional):
    r"""A generator of images with certain, class-balanced predictions and large features of the teacher.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - a mean|features| + guide(x, argmax f_T(x)), where
    p is the batch's mean class distribution. Departure: the official code updates generator and student in one backward
    pass; here a round has `steps` generator steps and then `images_per_round` fresh images for the student.
    """

    paper = "Chen et al., ICCV 2019"
    ours = ("steps", "batch", "images_per_round", "oh_temperature", "conditional")
    name: Literal["dafl"] = "dafl"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8}
    batch: int = 128
    """Images per generator step (512 to 1024 in the official code)."""
    oh_weight: float = 0.05
    oh_temperature: float = 1.0
    ie_weight: float = 5.0
    act_weight: float = 0.01

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `oh`, `ie` and `act`."""
        return {
            "oh": batch.oh,
            "ie": negative_entropy(batch.observation.logits),
            "act": negative_activation(batch.observation.features),
        }
