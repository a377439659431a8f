"""DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795): optimise pixels until the teacher's BN statistics agree.

Weights and settings: `peers.md` A.0, A.5 (read in the authors' released code and its DataFree port).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.losses.inversion import JsReduction, bn_distance, jensen_shannon, total_variation
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Pixelwise):
    r"""Pixel-space inversion; with an `adv_weight` it is Adaptive DeepInversion (ADI), which competes with the student.

    Minimises over images x, for labels y: oh CE(f_T(x), y) + bn \sum_l ||BN_l(x) - BN_l|| + tv TV(x) + l2 ||x||
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, y). The gradient of JS reaches x through both networks, as in
    both released scripts (that of ImageNet can detach the student, and does not by default) and in the DataFree port.
    Pixels are kept in the valid range at the start and after each step (the port: after each step), and the images of
    lowest loss are really kept (the released codes keep the last ones). Jitter: one roll of the whole batch a step, by
    up to 2 of 32 pixels (the official CIFAR code; the port: 4). One coin mirrors the whole batch, as in the official
    ImageNet code and the port.
    """

    paper = "Yin et al., CVPR 2020"
    ours = ("steps", "batch", "oh_temperature")
    name: Literal["deep_inversion"] = "deep_inversion"
    betas: tuple[float, float] = (0.5, 0.9)  # type: ignore[assignment]
    """Of Adam, as in the official ImageNet code; its CIFAR code has PyTorch's (0.9, 0.999)."""
    reads_bn = True
    steps: int = 100
    """Adam steps a round (2000 in the official code)."""
    bn_weight: float = 10.0
    oh_weight: float = 1.0
    oh_temperature: float = 1.0
    tv_weight: float = 1e-3
    l2_weight: float = 0.0
    adv_weight: float = 0.0
    """Of ADI's competition; 0 as released for CIFAR, where the student is then not asked at all. On ImageNet 0.2."""
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "batchmean"
    """Over the classes a sum, as released, or a mean (`mean`)."""
    first_bn_factor: float = 1.0
    """How often the first BN layer counts in `bn`: 1 as released for CIFAR, 10 for ImageNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`bn`, `oh`, `tv`, `l2` and `adv`."""
        return {
            "bn": bn_distance(batch.observation.bn, *teacher.bn, self.first_bn_factor),
            "oh": batch.oh,
            "tv": total_variation(batch.images),
            "l2": torch.linalg.vector_norm(batch.images),
            "adv": self._competition(batch, student),
        }

    def _competition(self, batch: StepBatch, student: nn.Module) -> Tensor:
        """ADI's term, 1 where student and teacher answer alike; 0 where it has no weight."""
        if not self.uses_student:
            return batch.observation.logits.new_zeros(())
        form = {"temperature": self.temperature, "reduction": self.js_reduction}
        js = jensen_shannon(student(batch.augmented), batch.observation.logits, **form)
        return 1 - batch.mean(js).clamp(0, 1)
