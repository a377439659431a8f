"""Decoupled knowledge distillation, DKD (Zhao et al., CVPR 2022): how sure, and how alike the other classes are.

The formulas are standard; alpha 1, beta 8 and tau 4 were read in the authors' released settings for CIFAR-100. Their
cross-entropy with true labels and its warm-up of epochs are left out: a synthetic image has no true label, and the
student's learning rate has a warm-up of its own (our choice).

Letters: B batch, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.methods.losses.kd.loss import Answer, KdLoss, divergence


@dataclass(frozen=True, kw_only=True)
class Dkd(KdLoss):
    r"""tau^2 (alpha TCKD + beta NCKD), both KL(teacher || student) of answers at temperature tau.

    TCKD is between the two probabilities (p_y, 1 - p_y) of the sample's label y, NCKD between the softmaxes over the
    other K - 1 classes. Hinton's KL is TCKD + (1 - p_y of the teacher) NCKD: on images the teacher is sure of, what it
    thinks of the other classes hardly counts there.
    """

    paper = "Zhao et al., CVPR 2022"
    name: Literal["dkd"] = "dkd"
    alpha: float = 1.0
    """Weight of TCKD."""
    beta: float = 8.0
    """Weight of NCKD. Also read there: 2 for resnet56 to resnet20; 0.5, at tau 1, on ImageNet."""
    temperature: float = 4.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        for what in ("alpha", "beta"):
            require(getattr(self, what) >= 0, f"dkd {what}", getattr(self, what), ">= 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        tau = self.temperature
        sure, others = _parts(student.logits.float() / tau, labels)
        teacher_sure, teacher_others = _parts(teacher.logits.float() / tau, labels)
        decoupled = self.alpha * divergence(sure, teacher_sure) + self.beta * divergence(others, teacher_others)
        return tau**2 * decoupled


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of "the label or not" (B, 2), and those of the other classes (B, K - 1)."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    # By a gather: a mask would have to be counted on the host, and -inf in the label's place gives NaN in a KL.
    others = logits.gather(1, index + (index >= labels[:, None]))
    return torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], 1), others
