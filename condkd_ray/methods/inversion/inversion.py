"""Base classes of the inversions: the contract, the hosts, and the steps of one round.

A host is an inversion method that a guide is attached to: the guide's penalty is added to the host's loss. `Host` is
the base class of the hosts of this package. Letters: B batch, C channels, H W height and width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.compilation import begin_step, whole
from condkd_ray.core.families import family_of
from condkd_ray.core.method import InputError, Meter, Method, Metrics, require, require_rates, require_weights
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unseen
from condkd_ray.core.task import BOTH, Task, is_dense
from condkd_ray.data.augment import split_labels, with_labels
from condkd_ray.methods.guidance.from_guides import Start
from condkd_ray.methods.guidance.guidance import Guide
from condkd_ray.methods.losses.inversion import class_prior
from condkd_ray.methods.losses.kd import per_image
from condkd_ray.methods.targets import Targets
from condkd_ray.methods.weighing import Weigh
from condkd_ray.models.observation import Observation, Observer
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")
WITH_BN: dict[Task, str] = {"classification": "resnet-8-16", "segmentation": "deeplab_resnet-8-16"}
"""A network of each task that has BN layers, for messages."""
TargetUse = Literal["none", "labels", "soft"]
"""Part of the targets that an inversion uses: `none`, the class `labels` only, or `soft` targets as well."""


@dataclass(frozen=True, kw_only=True)
class Inversion(Method, ABC, Generic[State]):
    """Contract of the inversions: methods that synthesise images from a teacher.

    An inversion is a host if a guide is attached to it. In each step, a host computes the teacher's outputs once
    (`teacher.observe(self.augment(images), guide.layers, bn=self.reads_bn)`), adds `guide.penalty(images, observation,
    labels)` to its loss, computes gradients with respect to its own leaves only (`torch.autograd.grad`, so that
    teacher, student and guide collect none), and then calls `guide.update` with detached values. `Host` implements this
    step.
    """

    pixel_space: ClassVar[PixelSpace]
    """Encoding of the images in stores, see `PixelSpace`."""
    uses_targets: ClassVar[TargetUse] = "labels"
    """Part of the targets that the method uses; `none` for a method that generates images without labels."""
    starts_from_images: ClassVar[bool] = False
    """True if a batch can start at images that the guide supplies (`Guide.start`): the method optimises pixels or
    latents."""
    fresh_each_round: ClassVar[bool] = False
    """True if a round makes enough images for all student steps that follow it, so that memory `latest` suffices."""

    augments: ClassVar[bool] = True
    """False if `augment` never changes an image; no random stream is opened for it then."""
    reads_bn: ClassVar[bool] = False
    """True if the loss uses BN statistics of the batch; otherwise they are not computed."""

    @property
    @abstractmethod
    def images_per_round(self) -> int:
        """Number of images that one call of `synthesize` returns."""

    @property
    def warm_up(self) -> int:
        """Number of rounds before the student's first step, in which the inversion only fills the memory."""
        return 0

    @property
    def labels_by_teacher(self) -> bool:
        """True if the teacher's argmax becomes the label of each image: by default if targets are not used."""
        return self.uses_targets == "none"

    @property
    def uses_student(self) -> bool:
        """True if the images depend on the current student."""
        return getattr(self, "adv_weight", 0.0) > 0

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Return the augmented `images` (B, C, H, W), which the teacher reads.

        The condensed images get the same augmentation. In segmentation the images have more channels, such as their
        labels: an augmentation that moves pixels moves them along, and gives new positions `UNLABELLED`.
        """
        return images

    @abstractmethod
    def init(self, teacher: Teacher, rng: Streams) -> State:
        """Return a new state on the teacher's device. Raises `InputError` if the teacher lacks what the loss reads."""

    def check_memory(self, teacher: Teacher, free: int, rounds: int) -> None:
        """Raise `InputError` if the state needs more than `free` bytes after `rounds` rounds."""

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
        """Run one round: return `images_per_round` images for as many `targets`, and the means of the loss terms.

        `student` is in eval mode and is not changed. A method that `uses_targets` `none` reads only the number of
        targets and returns unlabelled images. The returned samples have no logits: `trial.synthesis.settle` computes
        the teacher's logits for them, once. Raises `NonFiniteError`, with the name of the first loss term that was NaN
        or infinite.
        """


class BestStep:
    """Values of the step with the lowest loss so far. The losses are compared on the device, without waiting for it."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self.kept: tuple[Tensor, ...] = ()
        """Copies of that step's values, detached from the graph."""

    def update(self, loss: Tensor, *values: Tensor) -> None:
        """Keep `values` if `loss`, a scalar, is the lowest so far.

        The number of values and their shapes must be the same in each call.
        """
        loss = loss.detach()
        if self._loss is None:
            self._loss, self.kept = loss.clone(), tuple(value.detach().clone() for value in values)
            return
        better = loss < self._loss
        self._loss = torch.where(better, loss, self._loss)
        self.kept = tuple(torch.where(better, new.detach(), old) for new, old in zip(values, self.kept, strict=True))


def require_bn(teacher: Teacher) -> None:
    """Raise `InputError` unless the teacher has BN layers, whose statistics the inversion matches."""
    if teacher.bn_inputs:
        return
    family, task = family_of(Inversion), teacher.task
    assert family is not None
    kinds = {name: kind for name, kind in family.members().items() if kind is not NoInversion}
    names = [name for name, kind in kinds.items() if task in kind.tasks and not kind.reads_bn]
    accepted = f"1 or more, as in {WITH_BN[task]}; or inversion {' or '.join(names)}, which match no statistics"
    raise InputError(f"number of the teacher's batch normalisation layers is 0; accepted: {accepted}")


class StepBatch(NamedTuple):
    """The images of one step, the teacher's observation of them, and their targets.

    `images` and `augmented` are (B, C, H, W); `observation` is of the augmented images. `weight` (B,) holds the factor
    of each image in the terms that are means over images. `extra_inputs` holds what the host drew in addition, such as
    a second view. `temperature` is the temperature of the class prior.
    """

    images: Tensor
    augmented: Tensor
    observation: Observation
    targets: Targets
    weight: Tensor
    extra_inputs: tuple[Tensor, ...] = ()
    temperature: float = 1.0

    def mean(self, values: Tensor) -> Tensor:
        """Return the weighted mean of `values` over the images, a scalar.

        `values` are (B,), or in segmentation (B, H, W): pixels that an augmentation moved in do not count, because the
        student does not learn from them.
        """
        return (self.weight * per_image(values, self.observation.inside)).mean()

    @property
    def oh(self) -> Tensor:
        """Class prior: the weighted mean cross-entropy between the teacher's logits and the targets, a scalar."""
        return self.mean(class_prior(self.observation.logits, self.targets.cross_entropy_target, self.temperature))


@dataclass
class Round:
    """One call of `synthesize`: its arguments, the running means of the loss terms, and the step of lowest loss."""

    host: "Host"
    teacher: Teacher
    student: nn.Module
    guide: Guide
    weigh: Weigh
    rng: Streams
    meter: Meter = field(default_factory=lambda: Meter("inversion"))
    best_step: BestStep = field(default_factory=BestStep)

    def latents(self, *shape: int) -> Tensor:
        """Return standard normal values of this shape from stream `latents`."""
        return torch.randn(shape, generator=self.rng["latents"], device=self.rng.device)

    def start(self, labels: Tensor) -> Start | None:
        """Return the guide's starting images for a batch of `labels` (B,); None if the guide has none."""
        # A guide of another package may be older than this method of the protocol.
        start = getattr(self.guide, "start", None)
        return start(labels) if start is not None else None

    def start_near_guides(
        self,
        make: Callable[[], Tensor],
        labels: Tensor,
        latents: Sequence[Tensor],
        rows: Tensor | None = None,
        weights: Sequence[Tensor] = (),
    ) -> None:
        """Optimise `latents` and `weights` until `make` returns images close to the guide's starting images.

        Does nothing if the guide has no starting images. Image i is generated from row `rows[i]` of each of `latents`,
        or from row i if `rows` (B,) is None. Rows that belong to no starting image are not changed. Records the mean
        squared pixel distance of the last step as `start`. The host's own steps follow; no gradient of these steps
        remains.
        """
        start = self.start(labels)
        if start is None:
            return
        leaves = [*latents, *weights]
        groups = [{"params": list(latents), "lr": start.lr}]
        groups += [{"params": list(weights), "lr": getattr(self.host, "lr", start.lr)}] if weights else []
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True)
        rows = torch.arange(len(labels), device=labels.device) if rows is None else rows
        unmoved = torch.ones(len(latents[0]), dtype=torch.bool, device=rows.device)
        unmoved = unmoved.index_fill(0, rows[: len(start.images)], False)
        for step in range(start.steps):
            begin_step()
            distance = F.mse_loss(make_images(make)[: len(start.images)], start.images)
            assigned = set_gradients(leaves, torch.autograd.grad(distance, leaves))
            # BN in the generator gives every image a gradient, which Adam would scale up to a full step.
            for gradient in assigned[: len(latents)]:
                gradient.masked_fill_(unmoved.view(-1, *[1] * (gradient.ndim - 1)), 0)
            optimizer.step()
            clear_gradients(leaves)
            if step == start.steps - 1:
                self.meter.add(start=distance)

    @property
    def observer(self) -> Observer:
        """The teacher's observer of all layers and statistics that the host and the guide read."""
        return self.teacher.observer(self.guide.layers, self.host.reads_bn, self.host.input_mean_layers(self.teacher))

    def augmented(self, images: Tensor, targets: Targets | None = None) -> tuple[Tensor, Targets | None, Tensor | None]:
        """Return the augmented `images`, which the teacher reads, `targets`, and `Observation.inside`.

        In segmentation the targets move along.
        """
        if not self.host.augments:
            return images, targets, None
        augment = partial(self.host.augment, teacher=self.teacher, rng=self.rng["augment/inversion"])
        if not is_dense(self.teacher.task):
            return augment(images), targets, None
        inside = torch.zeros_like(images[:, 0])
        labels = inside if targets is None else targets.labels
        moved, labels = split_labels(augment(with_labels(with_labels(images, inside), labels)))
        moved, inside = split_labels(moved)
        return moved, None if targets is None else replace(targets, labels=labels), inside

    def forward(
        self,
        make: Callable[[], Tensor],
        losses: "LossFunction",
        targets: Targets | None = None,
        extra_inputs: Callable[[Tensor], tuple[Tensor, ...]] = lambda images: (),
    ) -> "ForwardPass":
        """Make the images of one step, augment and observe them, and compute the host's loss.

        `extra_inputs` draws additional inputs of `losses` from the images. If `targets` is None, the teacher's argmax
        is used. All random draws happen between the two compiled functions, `make_images` and `forward_pass`.
        """
        begin_step()
        images = make_images(make)
        augmented, targets, inside = self.augmented(images, targets)
        views = augmented, extra_inputs(images)
        return forward_pass(self.host, self.observer, self.weigh, losses, images, *views, targets, inside)

    def step(
        self, forward: "ForwardPass", leaves: Sequence[Tensor], move: Callable[[], object], *, keep: bool = False
    ) -> Sequence[Tensor]:
        """Set the gradients of the loss on `leaves`, call `move`, and update the guide; returns the gradients.

        The loss is the host's own plus the guide's penalty. No other tensor collects gradients. With `keep`, images and
        `extra` of the step with the lowest loss are stored in `best_step`.
        """
        batch = forward.batch
        penalty = self.guide.penalty(batch.images, batch.observation, batch.targets.labels)
        loss = forward.loss + penalty
        gradients = set_gradients(leaves, torch.autograd.grad(loss, leaves))
        if keep:
            self.best_step.update(loss, batch.images, *forward.extra)
        move()
        clear_gradients(leaves)
        self.guide.update(batch.images.detach(), batch.observation.detach(), batch.targets.labels)
        self.meter.add(**forward.terms, guide=penalty, loss=loss)
        return gradients


class LossTerms(NamedTuple):
    """Scalar loss terms, each with a field `<name>_weight` of the host, and values to be stored with the images."""

    terms: dict[str, Tensor]
    extra: tuple[Tensor, ...] = ()


LossFunction = Callable[[StepBatch], LossTerms]


class ForwardPass(NamedTuple):
    """One step's batch, loss terms, values to store, and the host's loss: the weighted sum of the terms."""

    batch: StepBatch
    terms: dict[str, Tensor]
    extra: tuple[Tensor, ...]
    loss: Tensor


@whole
def make_images(make: Callable[[], Tensor]) -> Tensor:
    """Return the images of a step."""
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
    inside: Tensor | None,
) -> ForwardPass:
    """Observe the augmented images and compute their weights, the loss terms and the host's loss."""
    observation = replace(observer(augmented), inside=inside)
    targets = Targets(observation.logits.argmax(1)) if targets is None else targets
    # Soft targets are probabilities at their own temperature and are meaningless at any other.
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
    """Assign each of `leaves` its gradient, in the memory format that fused optimisers need; returns the gradients."""
    given = [_in_layout_of(gradient, leaf) for gradient, leaf in zip(gradients, leaves, strict=True)]
    for leaf, gradient in zip(leaves, given, strict=True):
        leaf.grad = gradient
    return given


def clear_gradients(leaves: Sequence[Tensor]) -> None:
    """Set the gradients of all `leaves` to None."""
    for leaf in leaves:
        # A replayed graph owns these tensors: they are gone in the next step, and a compiler would read them.
        leaf.grad = None


def _in_layout_of(gradient: Tensor, leaf: Tensor) -> Tensor:
    """Return `gradient` in the memory format of its `leaf`, which fused optimisers require and do not check."""
    return gradient if gradient.stride() == leaf.stride() else torch.empty_like(leaf).copy_(gradient)


class Host(Inversion[State]):
    """Base class of the hosts: inversions that minimise a loss, to which a guide adds its penalty.

    A host implements `run`. This class is not a dataclass: each host declares the fields used here itself, in its own
    order.
    """

    pixel_space: ClassVar[PixelSpace] = "unit"
    allows_zero_lr: ClassVar[bool] = False
    """True if a learning rate may be 0 because another parameter group still moves."""
    batch: int
    oh_temperature = 1.0
    """Temperature of the class prior, CE(f_T(x) / temperature, y); our choice. At 1, as published, the cross-entropy
    has almost no gradient once the teacher's prediction is certain; at a higher temperature it has one. Soft targets
    use their own temperature instead."""

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
        """Return the names of the layers whose input means the loss uses: none by default."""
        return ()

    @final
    def synthesize(self, state: State, targets: Targets, **given: Any) -> tuple[Samples, Metrics]:
        """Run one round as `Inversion.synthesize` describes."""
        return self.run(state, targets, Round(self, **given))

    @abstractmethod
    def run(self, state: State, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run one round and return images and metrics like `synthesize`, whose other arguments are in `call`.

        Raises `NonFiniteError`, with the name of the first loss term that was NaN or infinite.
        """


@dataclass(frozen=True, kw_only=True)
class NoInversion(Inversion[None]):
    """Makes no images; the distiller's condensed share must be 1."""

    tasks = BOTH
    name: Literal["none"] = "none"
    pixel_space: ClassVar[PixelSpace] = "unit"
    uses_targets = "none"

    @property
    def images_per_round(self) -> int:
        """0: no images."""
        return 0

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Return None: there is no state."""

    def synthesize(self, state: None, targets: Targets, *, teacher: Teacher, **_: object) -> tuple[Samples, Metrics]:
        """Return an empty batch."""
        return unseen(targets.labels.new_zeros(0, *teacher.image_shape).float(), targets.labels[:0]), {}
