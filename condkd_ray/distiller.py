"""The student's step: a batch from the memory and the condensed set, and the distillation of the teacher on it.

Letters: B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from condkd_ray.augment import shift_flip
from condkd_ray.hooks import tapped
from condkd_ray.losses.kd import Answer, AnyKdLoss, Hinton, divergence
from condkd_ray.memory import AnyMemory, Store
from condkd_ray.method import Method, require
from condkd_ray.samples import Samples, cat
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
    """Images a student step, synthetic and condensed together; under `mix: concat` the synthetic ones alone."""
    condensed_share: float = 0.0
    """Share of each batch that is condensed; it replaces as many synthetic images (a fair arm)."""
    mix: Literal["share", "concat"] = "share"
    """How a batch holds both. `concat`, the paper's sum of two expectations (`methods.md` 1.2, 1.5): to `batch`
    synthetic images come as many condensed ones, at most all there are, none twice, and the loss is the mean over the
    former plus that over the latter. No fair arm: a step sees more images. `condensed_share` then only says whether
    there are condensed images alone (1), none (0), or both (anything between)."""
    share_schedule: Schedule = Schedule()
    """Factor of `condensed_share` over the rounds, as in PGDI's curriculum: many condensed images early, few late."""
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.1
    """Share of all steps in which the learning rate rises. Our choice: at a high temperature and without it, small
    students of few steps may blow up (`experiments/LOG.md`)."""
    augment: bool = True
    """Shift and flip the batch; the teacher then looks at it again, otherwise its stored logits serve (a loss that
    compares layers has it look in any case)."""
    shift: float = 0.125
    """Largest shift as a share of the side."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "student steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "student batch", self.batch, "an integer >= 2")
        require(0 <= self.condensed_share <= 1, "condensed_share", self.condensed_share, "0 <= share <= 1")
        most = self.condensed_share * self.share_schedule.largest
        require(most <= 1, "condensed_share times the largest factor of its share_schedule", most, "at most 1")
        fixed = self.mix == "share" or self.share_schedule == Schedule()
        require(fixed, "share_schedule under mix concat", self.share_schedule, "none: all condensed images are there")
        require(0 <= self.warm_up < 1, "warm_up", self.warm_up, "0 <= share < 1")
        require(self.lr > 0, "student lr", self.lr, "> 0")

    @property
    def concatenates(self) -> bool:
        """Whether condensed images come to a full batch of synthetic ones, rather than in their place."""
        return self.mix == "concat" and 0 < self.condensed_share < 1

    @property
    def asks_teacher(self) -> bool:
        """Whether each step asks the teacher about its batch; otherwise stored logits serve."""
        return self.augment or bool(self.loss.pairs)

    def num_condensed(self, progress: float) -> int:
        """Condensed images in the place of synthetic ones in a batch at `progress`: 0 first round, 1 last."""
        return 0 if self.concatenates else round(self.condensed_share * self.share_schedule.at(progress) * self.batch)

    @property
    def needs_synthetic(self) -> bool:
        """Whether there is ever a synthetic image in a batch."""
        least = round(self.condensed_share * self.share_schedule.smallest * self.batch)
        return self.concatenates or least < self.batch

    def condensed_rows(self, held: int, progress: float, rng: torch.Generator) -> Tensor:
        """Which of `held` condensed images are in a batch: drawn with replacement, under `concat` without."""
        if self.concatenates:
            return torch.randperm(held, generator=rng)[: self.batch]
        return torch.randint(held, (self.num_condensed(progress),), generator=rng)

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
        """One step on `batch` with `weights` (B,) of its samples: the loss is the mean of weights times losses."""
        images = self._augmented(batch.images, teacher, rng) if self.augment else batch.images
        pairs = self.loss.pairs
        taught = Answer(batch.logits)
        if self.asks_teacher or not batch.asked:
            with torch.no_grad():
                taught = answer(teacher.network, images, [theirs for _, theirs in pairs])
        images = images.contiguous(memory_format=torch.channels_last)
        given = answer(state.student, images, [ours for ours, _ in pairs])
        loss = (weights * self.loss(given, taught, batch.labels)).mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.schedule.step()
        agree = (given.logits.argmax(1) == taught.logits.argmax(1)).float().mean()
        return Step({"loss": loss, "agreement": agree}, divergence(given.logits.detach(), taught.logits))

    def _augmented(self, images: Tensor, teacher: Teacher, rng: Streams) -> Tensor:
        shift = round(self.shift * images.shape[-1])
        parts = [shift_flip(images[: self.batch], rng=rng["augment/student"], shift=shift, flip=teacher.flip_ok)]
        if len(images) > self.batch:
            # From a stream of their own, so that synthetic images move alike with or without condensed ones behind.
            added = rng["augment/condensed"]
            parts.append(shift_flip(images[self.batch :], rng=added, shift=shift, flip=teacher.flip_ok))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def answer(network: nn.Module, images: Tensor, layers: Sequence[str]) -> Answer:
    """What a network says of images, and what its `layers` gave on the way; without any, no hook runs."""
    with tapped(network, layers) as taps:
        logits = network(images).float()
    return Answer(logits, tuple(taps[name] for name in layers))


def as_two_means(weights: Tensor, added: int) -> Tensor:
    """Weights (n + added,) under which the mean over all is the mean over n, weighted (n,), plus that over the added.

    One pass through the student then serves both, and its BN sees them together (our choice).
    """
    whole = len(weights) + added
    return torch.cat([weights * (whole / len(weights)), weights.new_full((added,), whole / added)])


class Batch(NamedTuple):
    """A batch of the student's: samples (B), their weights (B,), and the ids of the first, those from the memory."""

    samples: Samples
    weights: Tensor
    ids: Tensor


def next_batch(
    distiller: Distiller,
    memory: AnyMemory,
    remembered: Any,
    store: Store,
    condensed: Samples | None,
    *,
    progress: float,
    teacher: Teacher,
    rng: Streams,
) -> Batch:
    """Synthetic then condensed samples: `batch` together, or, under `mix: concat`, condensed ones in addition.

    In every arm a full batch is drawn from the memory (its state: `remembered`) and the front of it used, so that all
    arms see the same draws.
    """
    num_condensed = distiller.num_condensed(progress)
    num_synthetic = distiller.batch - num_condensed
    parts: list[Samples] = []
    ids = torch.empty(0, dtype=torch.int64)
    weights = torch.ones(distiller.batch, device=teacher.device)
    if num_synthetic:
        drawn = memory.draw(remembered, store, distiller.batch, teacher=teacher, rng=rng)
        parts.append(drawn.samples[:num_synthetic].to(teacher.device))
        weights[:num_synthetic] = drawn.weights[:num_synthetic]
        ids = drawn.ids[:num_synthetic]
    if num_condensed or distiller.concatenates:
        assert condensed is not None
        rows = distiller.condensed_rows(len(condensed), progress, rng.host("condensed"))
        parts.append(condensed[rows.to(teacher.device)])
        weights = as_two_means(weights, len(rows)) if distiller.concatenates else weights
    return Batch(cat(parts), weights, ids)
