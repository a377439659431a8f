"""Distillation losses that look at logits alone.

Letters: B batch, K classes. Sources: `peers.md` A.0, `methods.md` 5.4 and 6.1 (read in the hosts' released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.methods.losses.kd.loss import Answer, KdLoss, softened


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of (B, K) logits: (B,)."""
    return (student.float() - teacher.float()).abs().mean(1)


@dataclass(frozen=True, kw_only=True)
class Hinton(KdLoss):
    r"""Hinton's KL: tau^2 KL(softmax(t / tau) || softmax(s / tau)). Fast and CMI use tau = 20.

    SSD-KD's mean(w / max(w) tau^2 KL) is this one under `memory: prioritized` with `divide_by: largest`: the student's
    step takes the mean of weights times losses, and those are then w / max(w) (`methods.md` 4.5).
    """

    paper: ClassVar[str] = "Hinton et al., arXiv 1503.02531"
    name: Literal["hinton"] = "hinton"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return softened(student.logits, teacher.logits, self.temperature)


@dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy(KdLoss):
    r"""Cross-entropy with the teacher's answer: -tau^2 \sum_k softmax(t / tau)_k log softmax(s / tau)_k.

    As ZSKD distils its images; what Wang's are distilled by is not known, and taken to be the same (`methods.md` 5.4).
    It has Hinton's gradient and another zero: the teacher's entropy, which a student cannot lower, is in it.
    """

    paper: ClassVar[str] = "Nayak et al., ICML 2019"
    name: Literal["soft_ce"] = "soft_ce"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        tau = self.temperature
        wanted = F.softmax(teacher.logits.float() / tau, dim=1)
        return -(tau**2) * (wanted * F.log_softmax(student.logits.float() / tau, dim=1)).sum(1)


@dataclass(frozen=True, kw_only=True)
class LogitL1(KdLoss):
    """Mean absolute difference of the logits, as DFAD, PRE-DFKD and MB-DFKD's re-runs distil."""

    name: Literal["l1"] = "l1"

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return logit_l1(student.logits, teacher.logits)
