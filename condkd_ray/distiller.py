"""The student's step: distil the teacher from a batch of samples. Letters: B batch, K classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condkd_ray.augment import shift_flip
from condkd_ray.losses.kd import AnyKdLoss, Hinton, divergence
from condkd_ray.method import Method, require
from condkd_ray.samples import Samples
from condkd_ray.schedule import Schedule
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class DistillerState:
    """Student, its optimiser and its learning-rate schedule."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any


class Step(NamedTuple):
    """What a step had to show, on the device: `terms` to be logged, and of each sample KL(teacher || student) (B,)."""

    terms: dict[str, Tensor]
    gap: Tensor


@dataclass(frozen=True, kw_only=True)
class Distiller(Method):
    """SGD with Nesterov momentum and a cosine schedule over all rounds (Fast's student recipe, shorter)."""

    loss: AnyKdLoss = Hinton()
    steps: int = 20
    """Student steps a round."""
    batch: int = 128
    """Images a student step, synthetic and condensed together."""
    condensed_share: float = 0.0
    """Share of each batch that is condensed; it replaces as many synthetic images (a fair arm)."""
    share_schedule: Schedule = Schedule()
    """Factor of `condensed_share` over the rounds, as in PGDI's curriculum: many condensed images early, few late."""
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.1
    """Share of all steps in which the learning rate rises. Our choice: at a high temperature and without it, small
    students of few steps may blow up (`experiments/LOG.md`)."""
    augment: bool = True
    """Shift and flip the batch; the teacher then looks at it again, otherwise its stored logits serve."""
    shift: float = 0.125
    """Largest shift as a share of the side."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "student steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "student batch", self.batch, "an integer >= 2")
        require(0 <= self.condensed_share <= 1, "condensed_share", self.condensed_share, "0 <= share <= 1")
        most = self.condensed_share * self.share_schedule.largest
        require(most <= 1, "condensed_share times the largest factor of its share_schedule", most, "at most 1")
        require(0 <= self.warm_up < 1, "warm_up", self.warm_up, "0 <= share < 1")
        require(self.lr > 0, "student lr", self.lr, "> 0")

    def num_condensed(self, progress: float) -> int:
        """Condensed images in each batch at `progress`, 0 in the first round and 1 in the last."""
        return round(self.condensed_share * self.share_schedule.at(progress) * self.batch)

    @property
    def needs_synthetic(self) -> bool:
        """Whether there is ever a synthetic image in a batch."""
        return round(self.condensed_share * self.share_schedule.smallest * self.batch) < self.batch

    def init(self, student: nn.Module, rounds: int) -> DistillerState:
        """Optimiser and schedule for `rounds` rounds."""
        optimizer = torch.optim.SGD(
            student.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate(rounds * self.steps))
        return DistillerState(student, optimizer, schedule)

    def _rate(self, total: int) -> Callable[[int], float]:
        """Factor of `lr` at each of `total` steps: linear up, then half a cosine down to 0."""
        rising = self.warm_up * total

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))

        return factor

    def step(self, state: DistillerState, batch: Samples, weights: Tensor, *, teacher: Teacher, rng: Streams) -> Step:
        """One step on `batch` with `weights` (B,) of its samples."""
        images, answers = batch.images, batch.logits
        if self.augment:
            shift = round(self.shift * images.shape[-1])
            images = shift_flip(images, rng=rng["augment/student"], shift=shift, flip=teacher.flip_ok)
            with torch.no_grad():
                answers = teacher.logits(images)
        images = images.contiguous(memory_format=torch.channels_last)
        logits = state.student(images).float()
        loss = (weights * self.loss(logits, answers)).mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.schedule.step()
        agree = (logits.argmax(1) == answers.argmax(1)).float().mean()
        return Step({"loss": loss, "agreement": agree}, divergence(logits.detach(), answers))
