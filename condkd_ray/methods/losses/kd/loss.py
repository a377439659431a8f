"""What a distillation loss is, the divergence that most are made of, and the losses that look at logits alone.

Letters: B batch, C channels, H W height and width, K classes. Sources: `peers.md` A.0, `methods.md` 5.4 and 6.1 (read
in the hosts' released code).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Method, require
from condkd_ray.models.teacher import Teacher


class Answer(NamedTuple):
    """A network's `logits` (B, K) and, where a loss has asked for them, outputs of layers, (B, C, H, W) each."""

    logits: Tensor
    taps: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KdLoss(Method, ABC):
    """Base of the distillation losses: between two answers to the same images, one value a sample."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer), each pair to be compared; most losses look at logits alone."""
        return ()

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError` where these two networks do not have what the loss compares."""

    @abstractmethod
    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) float32 losses of answers to images of the classes `labels` (B,)."""


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)): (B, K) logits of both to (B,)."""
    log_student, log_teacher = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton's loss: tau^2 KL at temperature tau, so that its gradient keeps its size; (B, K) logits to (B,)."""
    return temperature**2 * divergence(student.float() / temperature, teacher.float() / temperature)


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of (B, K) logits: (B,)."""
    return (student.float() - teacher.float()).abs().mean(1)


@dataclass(frozen=True, kw_only=True)
class Hinton(KdLoss):
    r"""Hinton's KL: tau^2 KL(softmax(t / tau) || softmax(s / tau)). Fast and CMI use tau = 20.

    SSD-KD's mean(w / max(w) tau^2 KL) is this one under `memory: prioritized` with `divide_by: largest`: the student's
    step takes the mean of weights times losses, and those are then w / max(w) (`methods.md` 4.5).
    """

    paper = "Hinton et al., arXiv 1503.02531"
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

    paper = "Nayak et al., ICML 2019"
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
