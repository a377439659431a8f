"""DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795): optimises pixels to match the teacher's BN statistics.

Weights and settings follow the released code of DeepInversion (a CIFAR script and an ImageNet script) and "the port":
its port in DataFree, the repository of CMI's authors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.core.task import BOTH
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.losses.inversion import JsReduction, bn_distance, jensen_shannon, total_variation
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Pixelwise):
    r"""Pixel-space inversion; with an `adv_weight` it is Adaptive DeepInversion (ADI), which competes with the student.

    Minimises over images x, for labels y: oh CE(f_T(x), y) + bn \sum_l ||BN_l(x) - BN_l|| + tv TV(x) + l2 ||x|| + adv
    (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, y). The gradient of JS reaches x through both networks, as in both
    scripts (the ImageNet script can detach the student, but does not by default) and in the port. Pixels are clamped to
    the valid range at the start and after each step (the port: after each step). The images of the step with the lowest
    loss are kept (the scripts and the port keep the last ones). Each step rolls the whole batch once, by up to 2 of 32
    pixels (the CIFAR script; the port: 4), and mirrors it with probability 1/2, as in the ImageNet script and the port.
    """

    paper = "Yin et al., CVPR 2020"
    ours = ("steps", "batch", "oh_temperature")
    tasks = BOTH
    name: Literal["deep_inversion"] = "deep_inversion"
    betas: tuple[float, float] = (0.5, 0.9)  # type: ignore[assignment]
    """Adam's betas, as in DeepInversion's ImageNet script; its CIFAR script uses PyTorch's default (0.9, 0.999)."""
    reads_bn = True
    steps: int = 100
    """Adam steps per round (2000 in DeepInversion's code)."""
    bn_weight: float = 10.0
    """Weight of the distance between the BN statistics of the images and the teacher's."""
    oh_weight: float = 1.0
    """Weight of the class prior, the cross-entropy between the teacher's predictions and the targets."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    tv_weight: float = 1e-3
    """Weight of the total variation of the images."""
    l2_weight: float = 0.0
    """Weight of the Euclidean norm of the whole batch of images."""
    adv_weight: float = 0.0
    """Weight of ADI's competition term: 0 in DeepInversion's CIFAR script, 0.2 in its ImageNet script. At 0 the student
    is not evaluated."""
    temperature: float = 3.0
    """Temperature of the softmax in JS."""
    js_reduction: JsReduction = "batchmean"
    """JS over the classes: a sum, as in DeepInversion's code (`batchmean`), or a mean (`mean`)."""
    first_bn_factor: float = 1.0
    """Factor of the first BN layer in `bn`: 1 in DeepInversion's CIFAR script, 10 in its ImageNet script."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `bn`, `oh`, `tv`, `l2` and `adv`."""
        return {
            "bn": bn_distance(batch.observation.bn, *teacher.bn, self.first_bn_factor),
            "oh": batch.oh,
            "tv": total_variation(batch.images),
            "l2": torch.linalg.vector_norm(batch.images),
            "adv": self._competition(batch, student),
        }

    def _competition(self, batch: StepBatch, student: nn.Module) -> Tensor:
        """Return ADI's term: 1 if student and teacher agree exactly, lower if they differ; 0 if it has no weight."""
        if not self.uses_student:
            return batch.observation.logits.new_zeros(())
        form = {"temperature": self.temperature, "reduction": self.js_reduction}
        js = jensen_shannon(student(batch.augmented), batch.observation.logits, **form)
        return 1 - batch.mean(js).clamp(0, 1)
