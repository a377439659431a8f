"""The student's step: a batch from the memory and the condensed set, and the distillation of the teacher on it.

Letters: B batch, K classes.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from condkd_ray.core.compilation import begin_step, whole
from condkd_ray.core.device import sent
from condkd_ray.core.method import Method, Schedule, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, cat
from condkd_ray.data.augment import dsa, require_shift, shift_flip
from condkd_ray.methods.losses.kd import Answer, AnyKdLoss, Hinton, divergence
from condkd_ray.methods.memory import AnyMemory, Store
from condkd_ray.models.hooks import tapped
from condkd_ray.models.teacher import Teacher


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
    """SGD or Adam on the distillation loss, under a learning-rate schedule over the student's rounds.

    The defaults are the recipe of CMI's and Fast's released code, with fewer steps and a warm-up. What each released
    code does (`shift` and flip only where named; a round is one pass of its innermost loop of inversion, then student):

    - CMI: SGD, lr 0.1, momentum 0.9, weight decay 1e-4; cosine to 0 over 200 epochs, `lr_epoch` 1; batch 256, from
      scratch on WRN-40-2 128, 400 steps a round; augmented.
    - Fast, NAYER: as CMI with lr 0.2 (Fast's batch 256), cosine to `last_lr` 2e-4 over the epochs after the warm-up.
    - PRE-DFKD: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; cosine to 0 over 400 epochs, `lr_epoch` 36; batch 1024, 10
      steps a round. On MNIST: Adam.
    - DAFL: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; multi_step: times 0.1 after 800 and 1600 of 2000 epochs, each
      of 120 rounds; batch 1024, 1 step a round. On MNIST: Adam, lr 2e-3, constant.
    - DFAD: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; multi_step: times 0.1 after 99 and 199 of 500 epochs, each of
      50 rounds (its code steps the schedule before an epoch); batch 256, 5 steps a round.
    - ZSKT: Adam, lr 2e-3, no weight decay; cosine to 0, `lr_epoch` 1; `clip` 5; batch 128, 10 steps a round.
    - ZSKD, from which soft targets come: Adam, lr 1e-3, constant; batch 64, under augmentations of its own.

    None has a warm-up of the rate or Nesterov momentum.
    """

    paper = "Fang et al., IJCAI 2021 (CMI); Fang et al., AAAI 2022 (Fast)"
    ours = (
        *("steps", "batch", "condensed_share", "mix", "share_schedule", "lr_epoch", "warm_up", "condensed_augment"),
    )
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
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the student's weights, as `torch.optim` has them."""
    lr: float = 0.1
    """The learning rate at its highest."""
    momentum: float = 0.9
    """Of SGD; for Adam its first beta, the second being 0.999."""
    nesterov: bool = False
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: float = 1e-4
    """Factor of the weights that is added to the gradient (L2 penalty), under Adam too."""
    lr_schedule: Literal["cosine", "multi_step", "constant"] = "cosine"
    """How `lr` changes: half a cosine to `last_lr` at the end of the student's rounds; times `decay` at each of the
    `milestones`; or not. The inversion's warm-up rounds, in which the student does not learn, do not count."""
    lr_epoch: int = 0
    """Rounds in an epoch, if a cosine changes the rate after each epoch only; 0: it does so after each step."""
    last_lr: float = 0.0
    """The learning rate that a cosine reaches at the end of the student's rounds."""
    milestones: tuple[int, ...] = ()
    """The student's rounds, counted from 1, after which the rate is multiplied by `decay`; multi_step alone has any."""
    decay: float = 0.1
    """Factor of the learning rate at each milestone."""
    warm_up: float = 0.1
    """Share of all steps in which the learning rate rises linearly, before a cosine begins; under the other schedules
    it multiplies what they give. Our choice: at a high temperature and without it, small students of few steps may blow
    up (`experiments/LOG.md`)."""
    clip: float = 0.0
    """Largest norm of the gradient of all weights together; a larger one is scaled down to it. 0: none is."""
    augment: bool = True
    """Shift and flip the batch; the teacher then looks at it again, otherwise its stored logits serve (a loss that
    compares layers has it look in any case)."""
    shift: float = 0.125
    """Largest shift as a share of the side; black moves in, as in the published crops of [0, 1] pixels."""
    condensed_augment: Literal["batch", "dsa"] = "batch"
    """What is done to the condensed images of a batch. `batch`: what is done to all of it. `dsa`: one operation of the
    DSA family a step instead, each image with a draw of its own, and the teacher looks again. Synthetic images are seen
    as without it."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "student steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "student batch", self.batch, "an integer >= 2")
        require(0 <= self.condensed_share <= 1, "condensed_share", self.condensed_share, "0 <= share <= 1")
        most = self.condensed_share * self.share_schedule.largest
        require(most <= 1, "condensed_share times the largest factor of its share_schedule", most, "at most 1")
        fixed = self.mix == "share" or self.share_schedule == Schedule()
        require(fixed, "share_schedule under mix concat", self.share_schedule, "none: all condensed images are there")
        require_shift(self.shift, "student shift")
        self._check_optimizer()
        self._check_schedule()

    def _check_optimizer(self) -> None:
        require(0 < self.lr < math.inf, "student lr", self.lr, "> 0, and finite")
        require(0 <= self.momentum < 1, "student momentum", self.momentum, "0 <= momentum < 1")
        sgd = self.optimizer == "sgd"
        require(sgd or not self.nesterov, "nesterov with optimizer adam", self.nesterov, "off, or optimizer sgd")
        moves = self.momentum > 0
        require(moves or not self.nesterov, "nesterov with momentum 0", self.nesterov, "off, or momentum > 0")
        require(0 <= self.weight_decay < math.inf, "student weight_decay", self.weight_decay, ">= 0")
        require(0 <= self.clip < math.inf, "student clip", self.clip, ">= 0; 0 is none")

    def _check_schedule(self) -> None:
        require(0 <= self.warm_up < 1, "warm_up", self.warm_up, "0 <= share < 1")
        require(0 < self.decay <= 1, "student decay", self.decay, "0 < factor <= 1")
        require(self.lr_epoch >= 0, "lr_epoch", self.lr_epoch, "an integer >= 0; 0 changes the rate with every step")
        require(0 <= self.last_lr <= self.lr, "last_lr", self.last_lr, f"0 to {self.lr}, the student's lr")
        found = self.milestones
        ascend = all(one < other for one, other in pairwise((0, *found)))
        require(ascend, "milestones", found, "the student's rounds, from 1, each later than the one before")
        steps = self.lr_schedule == "multi_step"
        require(bool(found) or not steps, "milestones under lr_schedule multi_step", found, "at least one")
        for what, schedule in (("milestones", "multi_step"), ("lr_epoch", "cosine"), ("last_lr", "cosine")):
            value, fits = getattr(self, what), self.lr_schedule == schedule
            accepted = f"{type(value)()}, or lr_schedule {schedule}"
            require(fits or not value, f"{what} under lr_schedule {self.lr_schedule}", value, accepted)

    @property
    def idle(self) -> tuple[str, ...]:
        """What is set and does nothing, and why. A search opens such fields beside those they need."""
        in_vain = self.condensed_augment == "dsa" and self.condensed_share == 0
        return ("condensed_augment dsa with condensed_share 0",) if in_vain else ()

    def check_rounds(self, rounds: int) -> None:
        """Raise `InputError` where the learning-rate schedule goes beyond the student's `rounds`."""
        last = max(self.milestones, default=0)
        require(last < rounds, "milestone", last, f"less than {rounds}, the student's rounds")
        require(self.lr_epoch <= rounds, "lr_epoch", self.lr_epoch, f"at most {rounds}, the student's rounds")

    def within(self, rounds: int) -> Self:
        """The same for a trial cut to `rounds`, whose cost is measured: later milestones are left out."""
        kept = tuple(milestone for milestone in self.milestones if milestone < rounds)
        schedule = self.lr_schedule if kept or self.lr_schedule == "cosine" else "constant"
        return replace(self, milestones=kept, lr_schedule=schedule, lr_epoch=min(self.lr_epoch, rounds))

    @property
    def concatenates(self) -> bool:
        """Whether condensed images come to a full batch of synthetic ones, rather than in their place."""
        return self.mix == "concat" and 0 < self.condensed_share < 1

    @property
    def asks_teacher(self) -> bool:
        """Whether each step asks the teacher about its batch; otherwise stored logits serve."""
        apart = self.condensed_augment == "dsa" and self.condensed_share > 0
        return self.augment or apart or bool(self.loss.pairs)

    def num_condensed(self, progress: float) -> int:
        """Condensed images in the place of synthetic ones in a batch at `progress`: 0 first round, 1 last."""
        return 0 if self.concatenates else round(self.condensed_share * self.share_schedule.at(progress) * self.batch)

    def num_synthetic(self, progress: float) -> int:
        """Synthetic images in a batch at `progress`; they come first."""
        return self.batch - self.num_condensed(progress)

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
        """Optimiser and learning-rate schedule for the `rounds` rounds in which the student learns."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam
        optimizer = kind(student.parameters(), self.lr, fused=True, **self._settings)
        # A factor of the step alone, and not one of torch's recursive schedules: a state taken over by a trial of
        # another recipe then follows that one at once.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate(rounds * self.steps))
        return DistillerState(student, optimizer, schedule)

    @property
    def _settings(self) -> dict[str, Any]:
        """What the optimiser is made with beside the rate."""
        if self.optimizer == "sgd":
            return {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        return {"betas": (self.momentum, 0.999), "weight_decay": self.weight_decay}

    def check_loaded(self, state: DistillerState, source: object) -> None:
        """Raise `InputError` where the optimiser loaded from `source` has other settings than this config's.

        Loading a state brings its optimiser's settings along, so a checkpoint of other code would change the recipe.
        """
        for group, (name, own) in product(state.optimizer.param_groups, self._settings.items()):
            found = group.get(name)
            require(found == own, f"the student optimiser's {name} in {source}", found, f"{own}; or delete the file")

    def _rate(self, total: int) -> Callable[[int], float]:
        """Factor of `lr` at each of `total` steps: linear up, and what the schedule says."""
        rising = self.warm_up * total
        falls = {"cosine": self._cosine(rising, total), "multi_step": self._multi_step, "constant": lambda step: 1.0}
        fall = falls[self.lr_schedule]
        return lambda step: min((step + 1) / (rising + 1), 1.0) * fall(step)

    def _cosine(self, rising: float, total: int) -> Callable[[int], float]:
        unit, end = max(self.lr_epoch * self.steps, 1), self.last_lr / self.lr

        def factor(step: int) -> float:
            passed = max(step - step % unit - rising, 0) / max(total - rising, 1)
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * passed))

        return factor

    def _multi_step(self, step: int) -> float:
        return self.decay ** bisect_right(self.milestones, step // self.steps)

    def step(
        self,
        state: DistillerState,
        batch: Samples,
        weights: Tensor,
        *,
        teacher: Teacher,
        rng: Streams,
        condensed: int = 0,
    ) -> Step:
        """One step on `batch` with `weights` (B,) of its samples: the loss is the mean of weights times losses.

        `condensed`: how many of its samples are condensed images, the last ones.
        """
        begin_step()
        images = self._shown(batch.images, condensed, teacher, rng)
        asked = self.asks_teacher or not batch.has_logits
        # Hooks that come and go, by which pairs of layers are read, are not for the compiler.
        compare = comparison.uncompiled if self.loss.pairs else comparison
        taught_by = teacher.network if self.loss.pairs else teacher.answering
        loss, agree, gap = compare(
            self.loss, state.student, taught_by if asked else None, images, batch.logits, batch.labels, weights
        )
        state.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(state.student.parameters(), self.clip)
        state.optimizer.step()
        state.schedule.step()
        return Step({"loss": loss, "agreement": agree}, gap)

    def _shown(self, images: Tensor, condensed: int, teacher: Teacher, rng: Streams) -> Tensor:
        """What the student sees of `images` (B, C, H, W), of which the last `condensed` are that."""
        apart = condensed if self.condensed_augment == "dsa" else 0
        synthetic = len(images) - apart
        # Moves are drawn for a full batch, so that synthetic images move alike however many of it are condensed.
        shown = images[: max(synthetic, self.batch)]
        shown = self._augmented(shown, teacher, rng) if self.augment else shown
        if not apart:
            return shown
        name = "augment/condensed"
        own = dsa(images[synthetic:], rng=rng[name], choice=rng.host(name), flip=teacher.flip_ok)
        return torch.cat([shown[:synthetic], own])

    def _augmented(self, images: Tensor, teacher: Teacher, rng: Streams) -> Tensor:
        move = partial(shift_flip, share=self.shift, flip=teacher.flip_ok, black=teacher.black.to(images))
        parts = [move(images[: self.batch], rng=rng["augment/student"])]
        if len(images) > self.batch:
            # From a stream of their own, so that synthetic images move alike with or without condensed ones behind.
            parts.append(move(images[self.batch :], rng=rng["augment/condensed"]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


@whole
def comparison(
    kd: AnyKdLoss,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Tensor,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of `weights` (B,) times the losses, the share named alike, and KL(teacher || student) (B,).

    The teacher's answers to `images` (B, C, H, W) are `logits` (B, K) where it is None, else it is asked.
    """
    taught = Answer(logits)
    if teacher is not None:
        with torch.no_grad():
            taught = answer(teacher, images, [theirs for _, theirs in kd.pairs])
    given = answer(student, images.contiguous(memory_format=torch.channels_last), [ours for ours, _ in kd.pairs])
    loss = (weights * kd(given, taught, labels)).mean()
    agree = (given.logits.argmax(1) == taught.logits.argmax(1)).float().mean()
    return loss, agree, divergence(given.logits.detach(), taught.logits)


def answer(network: nn.Module, images: Tensor, layers: Sequence[str]) -> Answer:
    """What a network says of images, and what its `layers` gave on the way; without any, no hook runs."""
    if not layers:
        return Answer(network(images).float())
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
    num_synthetic = distiller.num_synthetic(progress)
    parts: list[Samples] = []
    ids = torch.empty(0, dtype=torch.int64)
    weights = torch.ones(distiller.batch, device=teacher.device)
    if num_synthetic:
        drawn = memory.draw(remembered, store, distiller.batch, teacher=teacher, rng=rng)
        parts.append(drawn.samples[:num_synthetic])
        weights[:num_synthetic] = drawn.weights[:num_synthetic]
        ids = drawn.ids[:num_synthetic]
    if num_condensed or distiller.concatenates:
        assert condensed is not None
        rows = distiller.condensed_rows(len(condensed), progress, rng.host("condensed"))
        parts.append(condensed[sent(rows, teacher.device)])
        weights = as_two_means(weights, len(rows)) if distiller.concatenates else weights
    return Batch(cat(parts), weights, ids)
