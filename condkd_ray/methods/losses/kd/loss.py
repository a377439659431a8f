"""What student and teacher answer, what compares the answers, and the divergence that most losses are made of.

Letters: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Method
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
