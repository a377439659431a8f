"""The student's step: a batch from the memory and the condensed set, and the distillation loss on it.

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
from condkd_ray.core.task import BOTH
from condkd_ray.data.augment import black_of, dsa, require_shift, shift_flip, split_labels, with_labels
from condkd_ray.methods.losses.kd import AnyKdLoss, Hinton, NetworkOutputs, divergence, per_image
from condkd_ray.methods.memory import AnyMemory, Store
from condkd_ray.models.hooks import tapped
from condkd_ray.models.teacher import Teacher


@dataclass
class DistillerState:
    """The student, its optimiser and its learning-rate schedule."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any


class Step(NamedTuple):
    """Results of a step, on the device: `terms` to record, and `gap`, KL(teacher || student) of each sample, (B,)."""

    terms: dict[str, Tensor]
    gap: Tensor


@dataclass(frozen=True, kw_only=True)
class Distiller(Method):
    """SGD or Adam on the distillation loss, under a learning-rate schedule over the student's rounds.

    The defaults are the recipe of the released code of CMI and Fast, with fewer steps and a warm-up. The list gives the
    recipe of each method's released code. Batches are shifted and flipped only if "augmented" is listed; a round is one
    pass of the innermost loop that contains inversion and student steps.

    - CMI: SGD, lr 0.1, momentum 0.9, weight decay 1e-4; cosine to 0 over 200 epochs, `lr_epoch` 1; batch 256, from
      scratch on WRN-40-2 128, 400 steps per round; augmented.
    - Fast, NAYER: as CMI with lr 0.2 (Fast's batch 256), cosine to `last_lr` 2e-4 over the epochs after the warm-up.
    - PRE-DFKD: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; cosine to 0 over 400 epochs, `lr_epoch` 36; batch 1024, 10
      steps per round. On MNIST: Adam.
    - DAFL: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; multi_step: times 0.1 after 800 and 1600 of 2000 epochs, each
      of 120 rounds; batch 1024, 1 step per round. On MNIST: Adam, lr 2e-3, constant.
    - DFAD: SGD, lr 0.1, momentum 0.9, weight decay 5e-4; multi_step: times 0.1 after 99 and 199 of 500 epochs, each of
      50 rounds (its code steps the schedule before an epoch); batch 256, 5 steps per round.
    - ZSKT: Adam, lr 2e-3, no weight decay; cosine to 0, `lr_epoch` 1; `clip` 5; batch 128, 10 steps per round.
    - ZSKD, the origin of soft targets: Adam, lr 1e-3, constant; batch 64, with its own augmentations.

    None has a warm-up of the learning rate or Nesterov momentum.
    """

    tasks = BOTH
    paper = "Fang et al., IJCAI 2021 (CMI); Fang et al., AAAI 2022 (Fast)"
    ours = (
        *("steps", "batch", "condensed_share", "mix", "share_schedule", "lr_epoch", "warm_up", "condensed_augment"),
    )
    loss: AnyKdLoss = Hinton()
    """Loss between the outputs of student and teacher."""
    steps: int = 20
    """Student steps per round."""
    batch: int = 128
    """Images per student step, synthetic and condensed together; under `mix: concat` the synthetic ones only."""
    condensed_share: float = 0.0
    """Share of each batch that is condensed; it replaces as many synthetic images, so that all arms use equal
    batches."""
    mix: Literal["share", "concat"] = "share"
    """Combination of synthetic and condensed images in a batch. `share`: condensed images replace synthetic ones.
    `concat` is the sum of two expectations of Binici et al. (arXiv 2408.13850): condensed images are added to `batch`
    synthetic ones, equally many or at most all there are, without repetition; the loss is the mean over the synthetic
    plus the mean over the condensed images. The comparison with other arms is then not fair, because a step uses more
    images. `condensed_share` then only selects condensed images alone (1), none (0), or both (any other value)."""
    share_schedule: Schedule = Schedule()
    """Factor of `condensed_share` over the rounds, as in PGDI's curriculum: many condensed images early, few late."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the student's weights, from `torch.optim`."""
    lr: float = 0.1
    """Largest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, or Adam's first beta; its second is 0.999."""
    nesterov: bool = False
    """If true, SGD's momentum is Nesterov's."""
    weight_decay: float = 1e-4
    """Factor of the weights that is added to the gradient (L2 penalty), under Adam too."""
    lr_schedule: Literal["cosine", "multi_step", "constant"] = "cosine"
    """Schedule of `lr`: half a cosine to `last_lr` at the end of the student's rounds, the factor `decay` at each of
    the `milestones`, or a constant. The inversion's warm-up rounds, in which the student takes no steps, do not
    count."""
    lr_epoch: int = 0
    """Rounds per epoch, if a cosine changes the rate only after each epoch; 0: after each step."""
    last_lr: float = 0.0
    """Learning rate of a cosine at the end of the student's rounds."""
    milestones: tuple[int, ...] = ()
    """The student's rounds, counted from 1, after which the rate is multiplied by `decay`; only with multi_step."""
    decay: float = 0.1
    """Factor of the learning rate at each milestone."""
    warm_up: float = 0.1
    """Share of all steps in which the learning rate rises linearly, before a cosine begins; under the other schedules
    it multiplies their rate. Our choice: at a high temperature, small students of few steps can diverge without it
    (`experiments/LOG.md`)."""
    clip: float = 0.0
    """Largest norm of the gradient of all weights together; a larger gradient is scaled down to it. 0: no clipping."""
    augment: bool = True
    """Shift and flip the batch; the teacher's logits are then computed for the augmented images, otherwise the stored
    logits are used (a loss that compares layers runs the teacher in any case)."""
    shift: float = 0.125
    """Largest shift as a share of the side; black moves in, as in the published crops of [0, 1] pixels."""
    condensed_augment: Literal["batch", "dsa"] = "batch"
    """Augmentation of the condensed images of a batch. `batch`: the same as for the whole batch. `dsa`: instead, one
    DSA operation per step, with separate random parameters for each image, and the teacher's logits are computed again.
    Synthetic images are augmented as without it."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "student steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "student batch", self.batch, "an integer >= 2")
        require(0 <= self.condensed_share <= 1, "condensed_share", self.condensed_share, "0 <= share <= 1")
        most = self.condensed_share * self.share_schedule.largest
        require(most <= 1, "condensed_share times the largest factor of its share_schedule", most, "at most 1")
        fixed = self.mix == "share" or self.share_schedule == Schedule()
        require(fixed, "share_schedule under mix concat", self.share_schedule, "none: all condensed images are used")
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
        """Settings without effect, each with the reason.

        A search opens such a field together with those it depends on.
        """
        without_effect = self.condensed_augment == "dsa" and self.condensed_share == 0
        return ("condensed_augment dsa with condensed_share 0",) if without_effect else ()

    def check_rounds(self, rounds: int) -> None:
        """Raise `InputError` if the learning-rate schedule extends beyond the student's `rounds`."""
        last = max(self.milestones, default=0)
        require(last < rounds, "milestone", last, f"less than {rounds}, the student's rounds")
        require(self.lr_epoch <= rounds, "lr_epoch", self.lr_epoch, f"at most {rounds}, the student's rounds")

    def within(self, rounds: int) -> Self:
        """Return the config for a trial cut to `rounds` to measure its cost: later milestones are removed."""
        kept = tuple(milestone for milestone in self.milestones if milestone < rounds)
        schedule = self.lr_schedule if kept or self.lr_schedule == "cosine" else "constant"
        return replace(self, milestones=kept, lr_schedule=schedule, lr_epoch=min(self.lr_epoch, rounds))

    @property
    def concatenates(self) -> bool:
        """True if condensed images are added to a full batch of synthetic ones rather than replacing some."""
        return self.mix == "concat" and 0 < self.condensed_share < 1

    @property
    def runs_teacher(self) -> bool:
        """True if each step computes the teacher's logits of its batch; otherwise the stored logits are used."""
        separate = self.condensed_augment == "dsa" and self.condensed_share > 0
        return self.augment or separate or bool(self.loss.layer_pairs)

    def num_condensed(self, progress: float) -> int:
        """Return the number of condensed images that replace synthetic ones at `progress` (0: first round, 1: last)."""
        return 0 if self.concatenates else round(self.condensed_share * self.share_schedule.at(progress) * self.batch)

    def num_synthetic(self, progress: float) -> int:
        """Return the number of synthetic images in a batch at `progress`; a batch begins with them."""
        return self.batch - self.num_condensed(progress)

    @property
    def needs_synthetic(self) -> bool:
        """True if any batch contains a synthetic image."""
        least = round(self.condensed_share * self.share_schedule.smallest * self.batch)
        return self.concatenates or least < self.batch

    def condensed_rows(self, held: int, progress: float, rng: torch.Generator) -> Tensor:
        """Return the rows of a batch, of `held` condensed images: drawn with replacement, or without under `concat`."""
        if self.concatenates:
            return torch.randperm(held, generator=rng)[: self.batch]
        return torch.randint(held, (self.num_condensed(progress),), generator=rng)

    def init(self, student: nn.Module, rounds: int) -> DistillerState:
        """Return optimiser and learning-rate schedule for the `rounds` rounds in which the student learns."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam
        optimizer = kind(student.parameters(), self.lr, fused=True, **self._settings)
        # A function of the step only, not one of torch's recursive schedules: a state that another trial with a
        # different recipe takes over then follows the new recipe at once.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate(rounds * self.steps))
        return DistillerState(student, optimizer, schedule)

    @property
    def _settings(self) -> dict[str, Any]:
        """Arguments of the optimiser other than the rate."""
        if self.optimizer == "sgd":
            return {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        return {"betas": (self.momentum, 0.999), "weight_decay": self.weight_decay}

    def check_loaded(self, state: DistillerState, source: object) -> None:
        """Raise `InputError` if the optimiser loaded from `source` has other settings than this config's.

        Loading a state also loads its optimiser's settings, so a checkpoint of other code would change the recipe.
        """
        for group, (name, own) in product(state.optimizer.param_groups, self._settings.items()):
            found = group.get(name)
            require(found == own, f"the student optimiser's {name} in {source}", found, f"{own}; or delete the file")

    def _rate(self, total: int) -> Callable[[int], float]:
        """Return the factor of `lr` at each of `total` steps: a linear warm-up times the schedule."""
        warm_up_steps = self.warm_up * total
        factors = {
            "cosine": self._cosine(warm_up_steps, total),
            "multi_step": self._multi_step,
            "constant": lambda step: 1.0,
        }
        factor = factors[self.lr_schedule]
        return lambda step: min((step + 1) / (warm_up_steps + 1), 1.0) * factor(step)

    def _cosine(self, warm_up_steps: float, total: int) -> Callable[[int], float]:
        unit, end = max(self.lr_epoch * self.steps, 1), self.last_lr / self.lr

        def factor(step: int) -> float:
            passed = max(step - step % unit - warm_up_steps, 0) / max(total - warm_up_steps, 1)
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
        """Take one step on `batch`; the loss is the mean over samples of `weights` (B,) times the distillation losses.

        `condensed`: number of condensed images in the batch, which come last.
        """
        begin_step()
        images, labels = self._moved(batch, condensed, teacher, rng)
        run_teacher = self.runs_teacher or not batch.has_logits
        # The compiler cannot follow the temporary hooks that read pairs of layers.
        compare = comparison.uncompiled if self.loss.layer_pairs else comparison
        teacher_network = teacher.network if self.loss.layer_pairs else teacher.logits_network
        loss, agree, gap = compare(
            self.loss,
            state.student,
            teacher_network if run_teacher else None,
            images,
            batch.logits,
            labels,
            weights,
        )
        state.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(state.student.parameters(), self.clip)
        state.optimizer.step()
        state.schedule.step()
        return Step({"loss": loss, "agreement": agree}, gap)

    def _moved(self, batch: Samples, condensed: int, teacher: Teacher, rng: Streams) -> tuple[Tensor, Tensor]:
        """Return the batch's `student_images` and their labels, which move along in segmentation."""
        if batch.dense and self.augment:
            return split_labels(self._augmented(with_labels(batch.images, batch.labels), teacher, rng))
        return self.student_images(batch.images, condensed, teacher, rng), batch.labels

    def student_images(self, images: Tensor, condensed: int, teacher: Teacher, rng: Streams) -> Tensor:
        """Return `images` (B, C, H, W) augmented for the student; the last `condensed` of them are condensed images."""
        separate = condensed if self.condensed_augment == "dsa" else 0
        synthetic = len(images) - separate
        # Shifts are drawn for a full batch, so that those of synthetic images do not depend on the condensed share.
        augmented = images[: max(synthetic, self.batch)]
        augmented = self._augmented(augmented, teacher, rng) if self.augment else augmented
        if not separate:
            return augmented
        name = "augment/condensed"
        own = dsa(images[synthetic:], rng=rng[name], choice=rng.host(name), flip=teacher.flip_ok)
        return torch.cat([augmented[:synthetic], own])

    def _augmented(self, images: Tensor, teacher: Teacher, rng: Streams) -> Tensor:
        shift_and_flip = partial(
            shift_flip, share=self.shift, flip=teacher.flip_ok, black=black_of(teacher.black, images)
        )
        parts = [shift_and_flip(images[: self.batch], rng=rng["augment/student"])]
        if len(images) > self.batch:
            # From a separate stream, so that the shifts of synthetic images do not depend on condensed ones.
            parts.append(shift_and_flip(images[self.batch :], rng=rng["augment/condensed"]))
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
    """Return the weighted mean of the losses, the share of equal predictions, and KL(teacher || student), (B,).

    The losses are weighted by `weights` (B,). The teacher's logits of `images` (B, C, H, W) are computed, or, if
    `teacher` is None, they are `logits` (B, K). In segmentation the KL is the mean over the labelled pixels.
    """
    teacher_outputs = NetworkOutputs(logits)
    if teacher is not None:
        with torch.no_grad():
            teacher_outputs = network_outputs(teacher, images, [teacher_layer for _, teacher_layer in kd.layer_pairs])
    student_outputs = network_outputs(
        student,
        images.contiguous(memory_format=torch.channels_last),
        [student_layer for student_layer, _ in kd.layer_pairs],
    )
    loss = (weights * kd(student_outputs, teacher_outputs, labels)).mean()
    agree = (student_outputs.logits.argmax(1) == teacher_outputs.logits.argmax(1)).float().mean()
    gap = per_image(divergence(student_outputs.logits.detach(), teacher_outputs.logits), labels)
    return loss, agree, gap


def network_outputs(network: nn.Module, images: Tensor, layers: Sequence[str]) -> NetworkOutputs:
    """Return a network's logits of `images` and the outputs of its `layers`; without layers no hook is registered."""
    if not layers:
        return NetworkOutputs(network(images).float())
    with tapped(network, layers) as taps:
        logits = network(images).float()
    return NetworkOutputs(logits, tuple(taps[name] for name in layers))


def as_two_means(weights: Tensor, added: int) -> Tensor:
    """Return weights (n + added,) for the mean over n samples, weighted (n,), plus the mean over the added ones.

    The weights are such that the mean over all samples equals that sum. One pass through the student then serves both,
    and its BN statistics include both (our choice).
    """
    whole = len(weights) + added
    return torch.cat([weights * (whole / len(weights)), weights.new_full((added,), whole / added)])


class Batch(NamedTuple):
    """A student's batch: B samples, their weights (B,), and the ids of its first samples, those from the memory."""

    samples: Samples
    weights: Tensor
    ids: Tensor


def next_batch(
    distiller: Distiller,
    memory: AnyMemory,
    memory_state: Any,
    store: Store,
    condensed: Samples | None,
    *,
    progress: float,
    teacher: Teacher,
    rng: Streams,
) -> Batch:
    """Return synthetic, then condensed samples: `batch` in all; under `mix: concat`, condensed ones in addition.

    If a batch has synthetic images, a full batch is drawn from the memory (state `memory_state`) and only its
    first part is used, so that all arms have the same random draws.
    """
    num_condensed = distiller.num_condensed(progress)
    num_synthetic = distiller.num_synthetic(progress)
    parts: list[Samples] = []
    ids = torch.empty(0, dtype=torch.int64)
    weights = torch.ones(distiller.batch, device=teacher.device)
    if num_synthetic:
        drawn = memory.draw(memory_state, store, distiller.batch, teacher=teacher, rng=rng)
        parts.append(drawn.samples[:num_synthetic])
        weights[:num_synthetic] = drawn.weights[:num_synthetic]
        ids = drawn.ids[:num_synthetic]
    if num_condensed or distiller.concatenates:
        assert condensed is not None
        rows = distiller.condensed_rows(len(condensed), progress, rng.host("condensed"))
        parts.append(condensed[sent(rows, teacher.device)])
        weights = as_two_means(weights, len(rows)) if distiller.concatenates else weights
    return Batch(cat(parts), weights, ids)
