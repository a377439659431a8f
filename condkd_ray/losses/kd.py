"""Distillation losses between student and teacher logits, one value a sample.

Letters: B batch, K classes. Sources: `peers.md` A.0 and `methods.md` 6.1 (read in the hosts' released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from condkd_ray.method import Method, require


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)): (B, K) logits of both to (B,)."""
    log_student, log_teacher = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True, kw_only=True)
class Hinton(Method):
    r"""Hinton's KL: tau^2 KL(softmax(t / tau) || softmax(s / tau)). Fast and CMI use tau = 20."""

    paper: ClassVar[str] = "Hinton et al., arXiv 1503.02531"
    name: Literal["hinton"] = "hinton"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, K) logits of both to (B,) losses."""
        tau = self.temperature
        return tau**2 * divergence(student.float() / tau, teacher.float() / tau)


@dataclass(frozen=True, kw_only=True)
class LogitL1(Method):
    """Mean absolute difference of the logits, as DFAD, PRE-DFKD and MB-DFKD's re-runs distil."""

    name: Literal["l1"] = "l1"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, K) logits of both to (B,) losses."""
        return (student.float() - teacher.float()).abs().mean(1)


AnyKdLoss = Hinton | LogitL1
