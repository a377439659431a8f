"""What every inversion is: settings as fields, a state apart, and one verb; and the hosts of a guide.

Letters: B batch, C channels, H W height and width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.compilation import begin_step, whole
from condkd_ray.core.method import Meter, Method, Metrics, require, require_rates, require_weights
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unseen
from condkd_ray.methods.guidance.from_guides import Start
from condkd_ray.methods.guidance.guidance import Guide
from condkd_ray.methods.losses.inversion import class_prior
from condkd_ray.methods.targets import Targets
from condkd_ray.methods.weighing import Weigh
from condkd_ray.models.observation import Observation, Observer
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")
TargetUse = Literal["none", "labels", "soft"]


@dataclass(frozen=True, kw_only=True)
class Inversion(Method, ABC, Generic[State]):
    """Contract of the family.

    A host asks the teacher once a step (`teacher.observe(self.augment(images), guide.layers, bn=self.reads_bn)`), adds
    `guide.penalty(images, observation, labels)` to its loss, takes gradients of its own leaves only
    (`torch.autograd.grad`: teacher, student and guide collect none) and then calls `guide.update` on detached values.
    `Host` does so.
    """

    pixel_space: ClassVar[PixelSpace]
    """How stores keep its images."""
    uses_targets: ClassVar[TargetUse] = "labels"
    """What of the targets it uses: none, the labels alone, or soft targets too. Unconditional methods hear nothing."""
    starts_from_images: ClassVar[bool] = False
    """Whether it asks the guide where its batches start (`Guide.start`): it optimises pixels or latents."""
    fresh_each_round: ClassVar[bool] = False
    """Whether it makes its images by the thousand for the student of the day, so that the latest round's are enough."""

    augments: ClassVar[bool] = True
    """Whether `augment` may change images; for a host that never does, no stream is opened for it."""
    reads_bn: ClassVar[bool] = False
    """Whether its loss reads the BN statistics of a batch; for a host that does not, none are computed."""

    @property
    @abstractmethod
    def images_per_round(self) -> int:
        """Images a call of `synthesize` gives."""

    @property
    def warm_up(self) -> int:
        """Rounds before the student's first step, in which it only fills the memory."""
        return 0

    @property
    def labels_by_teacher(self) -> bool:
        """Whether its images get the teacher's argmax for labels, when they are settled; so where it hears nothing."""
        return self.uses_targets == "none"

    @property
    def uses_student(self) -> bool:
        """Whether images depend on the student of the day."""
        return getattr(self, "adv_weight", 0.0) > 0

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """What the host does to images before the teacher sees them; the condensed ones get the same."""
        return images

    @abstractmethod
    def init(self, teacher: Teacher, rng: Streams) -> State:
        """A fresh state, on the teacher's device."""

    def check_memory(self, teacher: Teacher, free: int, rounds: int) -> None:
        """Raise `InputError` where what the state comes to hold in `rounds` rounds needs more than `free` bytes."""

    @abstractmethod
    def synthesize(
        self,
        state: State,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """One round: `images_per_round` images for as many `targets`, and the means of its loss terms.

        `student` comes in eval mode and is left as it was. Unconditional methods ignore the targets and leave their
        images unlabelled. None asks the teacher about its finished images: `settle` in `trial` does so, once. Raises
        `NonFiniteError` naming the first loss term that was NaN or infinite.
        """


class Lowest:
    """What the step of the lowest loss so far had to show; the choice is made on the device, without a host sync."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self.kept: tuple[Tensor, ...] = ()
        """Copies of that step's values, outside the graph."""

    def offer(self, loss: Tensor, *values: Tensor) -> None:
        """Keep `values` if `loss`, a scalar, is below all before; the same number of them, and shapes, each time."""
        loss = loss.detach()
        if self._loss is None:
            self._loss, self.kept = loss.clone(), tuple(value.detach().clone() for value in values)
            return
        better = loss < self._loss
        self._loss = torch.where(better, loss, self._loss)
        self.kept = tuple(torch.where(better, new.detach(), old) for new, old in zip(values, self.kept, strict=True))


def require_bn(teacher: Teacher) -> None:
    """Raise `InputError` unless there are BN statistics to match."""
    accepted = "1 or more, as in resnet-8-16; or inversion soft_target, dafl, zskt, dfad, pre_dfkd, which read none"
    require(bool(teacher.bn_inputs), "number of the teacher's batch normalisation layers", 0, accepted)


class StepBatch(NamedTuple):
    """One step's images (B, C, H, W), plain and `augmented`, the teacher's observation of the latter, and the targets.

    `weight` (B,): what each image counts in the terms that are a mean over images; `beside`: what else the host has
    drawn for them, such as another view; `temperature`: that of the class prior.
    """

    images: Tensor
    augmented: Tensor
    observation: Observation
    targets: Targets
    weight: Tensor
    extra_inputs: tuple[Tensor, ...] = ()
    temperature: float = 1.0

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of the images' `values` (B,), a scalar."""
        return (self.weight * values).mean()

    @property
    def oh(self) -> Tensor:
        """The class prior: the weighted mean cross-entropy of the teacher's answers with what was wanted, a scalar."""
        return self.mean(class_prior(self.observation.logits, self.targets.cross_entropy_target, self.temperature))


@dataclass
class Round:
    """One call of `synthesize`: what it was given, the means of its terms, and the step of lowest loss."""

    host: "Host"
    teacher: Teacher
    student: nn.Module
    guide: Guide
    weigh: Weigh
    rng: Streams
    meter: Meter = field(default_factory=lambda: Meter("inversion"))
    lowest: Lowest = field(default_factory=Lowest)

    def latents(self, *shape: int) -> Tensor:
        """Standard normal values from stream `latents`."""
        return torch.randn(shape, generator=self.rng["latents"], device=self.rng.device)

    def start(self, labels: Tensor) -> Start | None:
        """Where the guide has the first images of `labels` (B,) start; None where it has no say in this."""
        # A guide of somebody else's may be older than the question.
        ask = getattr(self.guide, "start", None)
        return ask(labels) if ask is not None else None

    def start_near_guides(
        self,
        make: Callable[[], Tensor],
        labels: Tensor,
        latents: Sequence[Tensor],
        rows: Tensor | None = None,
        weights: Sequence[Tensor] = (),
    ) -> None:
        """Move `latents` and `weights` until `make` gives images near those the guide has the batch start at, if any.

        Image i is made of row `rows[i]` of each of `latents`, of row i without `rows` (B,). Rows that only other images
        are made of stay as they are. Logs the last step's mean squared distance of pixels as `start`. The host's own
        steps come after; no gradient of these ones is left.
        """
        start = self.start(labels)
        if start is None:
            return
        leaves = [*latents, *weights]
        groups = [{"params": list(latents), "lr": start.lr}]
        groups += [{"params": list(weights), "lr": getattr(self.host, "lr", start.lr)}] if weights else []
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True)
        rows = torch.arange(len(labels), device=labels.device) if rows is None else rows
        resting = torch.ones(len(latents[0]), dtype=torch.bool, device=rows.device)
        resting = resting.index_fill(0, rows[: len(start.images)], False)
        for step in range(start.steps):
            begin_step()
            distance = F.mse_loss(make_images(make)[: len(start.images)], start.images)
            given = set_gradients(leaves, torch.autograd.grad(distance, leaves))
            # BN in the generator hands each image a gradient, which Adam would bring to the size of all others.
            for gradient in given[: len(latents)]:
                gradient.masked_fill_(resting.view(-1, *[1] * (gradient.ndim - 1)), 0)
            optimizer.step()
            clear_gradients(leaves)
            if step == start.steps - 1:
                self.meter.add(start=distance)

    @property
    def observer(self) -> Observer:
        """Who looks at the teacher for the host and the guide."""
        return self.teacher.observer(self.guide.layers, self.host.reads_bn, self.host.input_mean_layers(self.teacher))

    def augmented(self, images: Tensor) -> Tensor:
        """`images` as the teacher gets to see them."""
        if not self.host.augments:
            return images
        return self.host.augment(images, teacher=self.teacher, rng=self.rng["augment/inversion"])

    def forward(
        self,
        make: Callable[[], Tensor],
        losses: "LossFunction",
        targets: Targets | None = None,
        extra_inputs: Callable[[Tensor], tuple[Tensor, ...]] = lambda images: (),
    ) -> "ForwardPass":
        """A step as far as the host's own loss: `make` images, augment them, draw what is wanted `beside`, `losses`.

        Without `targets` the teacher's argmax serves. What draws stands between two parts that are compiled whole.
        """
        begin_step()
        images = make_images(make)
        views = self.augmented(images), extra_inputs(images)
        return forward_pass(self.host, self.observer, self.weigh, losses, images, *views, targets)

    def step(
        self, forward: "ForwardPass", leaves: Sequence[Tensor], move: Callable[[], object], *, keep: bool = False
    ) -> Sequence[Tensor]:
        """Give `leaves` the gradients of the loss, `move` them, and let the guide learn; returns the gradients.

        The loss is the host's own and the guide's penalty. Nothing else collects gradients. With `keep`, images and
        `extra` of the step of lowest loss stand in `lowest` afterwards.
        """
        batch = forward.batch
        pull = self.guide.penalty(batch.images, batch.observation, batch.targets.labels)
        loss = forward.loss + pull
        gradients = set_gradients(leaves, torch.autograd.grad(loss, leaves))
        if keep:
            self.lowest.offer(loss, batch.images, *forward.extra)
        move()
        clear_gradients(leaves)
        self.guide.update(batch.images.detach(), batch.observation.detach(), batch.targets.labels)
        self.meter.add(**forward.terms, guide=pull, loss=loss)
        return gradients


class LossTerms(NamedTuple):
    """Scalars to minimise, by names whose `<name>_weight` is a field of the host; values to be kept with the images."""

    terms: dict[str, Tensor]
    extra: tuple[Tensor, ...] = ()


LossFunction = Callable[[StepBatch], LossTerms]


class ForwardPass(NamedTuple):
    """A step's batch, what was said of it, and the host's own loss: the sum of weights times terms."""

    batch: StepBatch
    terms: dict[str, Tensor]
    extra: tuple[Tensor, ...]
    loss: Tensor


@whole
def make_images(make: Callable[[], Tensor]) -> Tensor:
    """The images of a step."""
    return make()


@whole
def forward_pass(
    host: "Host",
    observer: Observer,
    weigh: Weigh,
    losses: LossFunction,
    images: Tensor,
    augmented: Tensor,
    extra_inputs: tuple[Tensor, ...],
    targets: Targets | None,
) -> ForwardPass:
    """What the teacher, the weighing and the host say of a step's images."""
    observation = observer(augmented)
    targets = Targets(observation.logits.argmax(1)) if targets is None else targets
    # Soft targets are probabilities at a temperature of their own, and mean nothing at another.
    temperature = host.oh_temperature if targets.soft is None else targets.temperature
    batch = StepBatch(
        images, augmented, observation, targets, weigh(observation, targets.labels), extra_inputs, temperature
    )
    terms, extra = losses(batch)
    loss, *others = (getattr(host, f"{name}_weight") * term for name, term in terms.items())
    for other in others:
        loss = loss + other
    return ForwardPass(batch, terms, extra, loss)


def set_gradients(leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Give each of `leaves` its gradient, as its optimiser reads it; returns them."""
    given = [_laid_out(gradient, leaf) for gradient, leaf in zip(gradients, leaves, strict=True)]
    for leaf, gradient in zip(leaves, given, strict=True):
        leaf.grad = gradient
    return given


def clear_gradients(leaves: Sequence[Tensor]) -> None:
    """Leave no gradient behind."""
    for leaf in leaves:
        # A graph that is replayed owns them: in the next step they are gone, and a compiler would batch at them.
        leaf.grad = None


def _laid_out(gradient: Tensor, leaf: Tensor) -> Tensor:
    """`gradient` in the memory format of its `leaf`: fused optimisers read both as they lie and do not batch."""
    return gradient if gradient.stride() == leaf.stride() else torch.empty_like(leaf).copy_(gradient)


class Host(Inversion[State]):
    """Base of the inversions that lower a loss; a host's own part is `run`.

    It is no dataclass itself: the fields it names are those of the hosts, each in the order of its own.
    """

    pixel_space: ClassVar[PixelSpace] = "unit"
    allows_zero_lr: ClassVar[bool] = False
    """Whether a learning rate may be 0, as something else moves."""
    batch: int
    oh_temperature = 1.0
    """Of the class prior, CE(f_T(x) / temperature, y). Cross-entropy at 1, as published, has hardly a gradient once the
    teacher is sure; at a higher temperature it goes on. Soft targets have a temperature of their own instead."""

    def __post_init__(self) -> None:
        require_weights(self, "inversion")
        require_rates(self, "inversion", frozen=self.allows_zero_lr)
        accepted = "a number > 0"
        require(0 < self.oh_temperature < math.inf, "inversion oh_temperature", self.oh_temperature, accepted)
        used = getattr(self, "oh_weight", 0.0) > 0
        accepted = "1, or an oh_weight > 0: it is the temperature of the class prior alone"
        require(used or self.oh_temperature == 1, "oh_temperature with oh_weight 0", self.oh_temperature, accepted)

    @property
    def images_per_round(self) -> int:
        """One batch."""
        return self.batch

    def input_mean_layers(self, teacher: Teacher) -> tuple[str, ...]:
        """Names of layers whose inputs' means it reads: none."""
        return ()

    @final
    def synthesize(self, state: State, targets: Targets, **given: Any) -> tuple[Samples, Metrics]:
        """See `Inversion.synthesize`."""
        return self.run(state, targets, Round(self, **given))

    @abstractmethod
    def run(self, state: State, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """`synthesize`, with all that surrounds it as one value."""


@dataclass(frozen=True, kw_only=True)
class NoInversion(Inversion[None]):
    """Makes no images; the distiller's condensed share must be 1."""

    name: Literal["none"] = "none"
    pixel_space: ClassVar[PixelSpace] = "unit"
    uses_targets = "none"

    @property
    def images_per_round(self) -> int:
        """None at all."""
        return 0

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing to keep."""

    def synthesize(self, state: None, targets: Targets, *, teacher: Teacher, **_: object) -> tuple[Samples, Metrics]:
        """An empty batch."""
        return unseen(targets.labels.new_zeros(0, *teacher.image_shape).float(), targets.labels[:0]), {}
