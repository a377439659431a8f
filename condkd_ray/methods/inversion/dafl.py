"""DAFL (Chen et al., ICCV 2019, "Data-free learning of student networks"), after the authors' released code."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.core.task import BOTH
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.inversion import negative_activation, negative_entropy
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dafl(Unconditional):
    r"""A generator of images with certain, class-balanced predictions and large features of the teacher.

    Minimises oh CE(f_T(x), y) + ie \sum_c p_c log10 p_c - act mean|features| + guide(x, y), where p is the batch's mean
    class distribution. Here y is argmax f_T(x), or, with `conditional`, the label that the generator gets. Departure:
    the released code of DAFL updates generator and student in one backward pass; here a round has `steps` generator
    steps and then `images_per_round` fresh images for the student.
    """

    paper = "Chen et al., ICCV 2019"
    ours = ("steps", "batch", "images_per_round", "oh_temperature", "conditional")
    tasks = BOTH
    name: Literal["dafl"] = "dafl"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8}
    batch: int = 128
    """Images per generator step (512 to 1024 in DAFL's code)."""
    oh_weight: float = 0.05
    """Weight of the class prior, the cross-entropy with the teacher's argmax (with `conditional`, with the labels)."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    ie_weight: float = 5.0
    """Weight of the negative entropy of the batch's mean class distribution."""
    act_weight: float = 0.01
    """Weight of the term that rewards a large mean absolute feature."""

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `oh`, `ie` and `act`."""
        return {
            "oh": batch.oh,
            "ie": negative_entropy(batch.observation.logits),
            "act": negative_activation(batch.observation.features),
        }
