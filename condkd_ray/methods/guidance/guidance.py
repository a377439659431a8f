"""What every guidance is, and the guide an inversion is handed: a guidance bound to its state and the condensed set.

Letters: B batch, D features of all compared layers, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.method import Meter, Method, Schedule, require, require_rates, require_weights
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.data.augment import dsa
from condkd_ray.methods.guidance.from_guides import FromGuides, Start
from condkd_ray.models.observation import PENULTIMATE, Observation
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")
Augmentation = Literal["host", "condensed", "dsa"]
Alignment = Literal["class", "marginal"]
HostAugment = Callable[[Tensor, torch.Generator], Tensor]
MOST_AT_START = 4096
"""Looks a state is made from: some compare all pairs, and all real images can be the condensed set."""
MOST_STAGES = 4
SAME = 1e-8
"""Squared distances below this share of the squared norms are 0 but for rounding."""
VIEWS, VIEWED = 16, 256
"""Views, at most, of each image held out that a guidance is examined on, and about how many are enough in all."""


class Guide(Protocol):
    """A guidance bound to its state, the condensed set and the teacher: all an inversion ever sees of it.

    A host observes its augmented images once with `layers`, adds `penalty` to its loss, and after its step calls
    `update`. `images` are (B, C, H, W) before augmentation, `seen` the teacher's look at them after, `labels` (B,).
    `observation.bn` is empty where the host reads no BN statistics.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers the host has to observe for it."""
        ...

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """A scalar, weighted, differentiable in `images` (directly or through `seen`)."""
        ...

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Learn from a batch the host has just made. Nothing flows back into `images`."""
        ...

    def start(self, labels: Tensor) -> Start | None:
        """Where the first images of a batch of `labels` (B,) start; None: where the host has them start.

        A guide without this method, such as one written before it was there, says None.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """How features stand in a tensor: the columns of each compared layer side by side, views of all images in turn."""

    widths: tuple[int, ...] = ()
    """Columns of each layer, `layer` first; empty where it is the only one."""
    views: int = 1

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """The columns of each layer, of features (..., D)."""
        return features.split(self.widths, -1) if self.widths else (features,)


ONE_LAYER = Layout()


@dataclass(kw_only=True)
class GuidanceState:
    """Base of the states. The factors and deviations are measured by `Guidance.start`, where they are wanted."""

    units: Tensor | None = None
    """(D,): factors that bring each layer to a spread of 1 among the condensed images; None without `stages`."""
    jitter: Tensor | None = None
    """(D,): standard deviations of noise as large as each layer's spread; None where nothing needs them."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Method, ABC, Generic[State]):
    """Contract of the family: a penalty on what the teacher saw of fakes, and learning from fakes beside condensed.

    They see features (B, D) alone; drawing, augmenting, observing and scaling are the bound guide's.
    """

    uses_condensed_batches: ClassVar[bool] = True
    """Whether it looks at condensed images in each step; else it gets none of them in `update`."""

    weight: float = 1.0
    """Factor of the penalty in the host's loss (lambda_FA); 0 equals no guidance bit for bit."""
    augment: Augmentation = "host"
    """`host`: fakes as the host saw them, condensed under the host's own augmentation. `dsa`: the guide looks at
    DSA-augmented fakes and condensed; the host never sees DSA. `condensed`: as `host`, with DSA on the condensed batch
    alone, so that the two sides differ even where their images do not. A batch under `dsa` has one kind of DSA, drawn
    for each side apart."""
    layer: str = PENULTIMATE
    """Whose features are compared: `penultimate` (the paper's), or a module of the teacher, its mean over space."""
    stages: int = 0
    """The teacher's last stages, 0 to 4, whose outputs' channel means are compared beside `layer`. A last stage whose
    means are the penultimate features does not count. With any, each layer is in units of its spread among the
    condensed images: the root of the mean squared distance from the class mean, where a class has two, else from the
    mean of all."""
    stages_weight: float = 1.0
    """Weight of each stage against `layer`; for a discriminator, the square of the factor of its features."""
    alignment: Alignment = "class"
    """`class`: within each class. `marginal`: the batch as a whole, with condensed images in the proportions of its
    labels; for unconditional hosts, whose labels are the teacher's argmax, no class is then wanted of any image."""
    mixup: float = 0.0
    """Condensed features are mixed with others of their class in the batch, whose share is uniform between 0 and this,
    at most 1. It narrows the condensed side: at 1 the variance about the class mean falls to two thirds in the mean,
    and so the spread to 0.82."""
    noise: float = 0.0
    """Gaussian noise on the condensed features alone, in units of each layer's spread (see `stages`)."""
    schedule: Schedule = Schedule()
    """Factor of the weight over the rounds: a warm-up (`start: 0`) or a curriculum (`end: 0`)."""
    from_guides: FromGuides = FromGuides()
    """Whether batches start at condensed images, whatever the weight; by default at noise, as the host has them."""

    def __post_init__(self) -> None:
        require_weights(self, "guidance")
        require_rates(self, "guidance")
        require(0 <= self.stages <= MOST_STAGES, "guidance stages", self.stages, f"an integer, 0 to {MOST_STAGES}")
        require(0 <= self.mixup <= 1, "guidance mixup", self.mixup, "0 to 1")
        require(0 <= self.noise < math.inf, "guidance noise", self.noise, "a number >= 0")

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers it names and needs tapped; the penultimate features always come."""
        return () if self.layer == PENULTIMATE else (self.layer,)

    def tapped_layers(self, teacher: Teacher) -> tuple[str, ...]:
        """All layers of this teacher that it needs tapped: those it names, and the last stages, in their order."""
        ends = teacher.stage_outputs
        return self.layers + ends[len(ends) - self.stages :]

    @property
    def views(self) -> int:
        """Augmented views of each condensed image that `init` is given; 0: one look at the image as it is."""
        return 0

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` where the teacher has not the layers that are to be compared."""
        teacher.check_layers(self.layers)
        ends = teacher.stage_outputs
        there = f"0 to {min(len(ends), MOST_STAGES)}; beside its features this teacher has {', '.join(ends) or 'none'}"
        require(self.stages <= len(ends), "guidance stages", self.stages, there)
        beside = self.tapped_layers(teacher)[len(self.layers) :]
        others = f"{PENULTIMATE}, or a layer that is none of the stages compared beside it, {', '.join(beside)}"
        require(self.layer not in beside, f"guidance layer with stages {self.stages}", self.layer, others)

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """Raise `InputError` where `ipc` condensed images a class, as augmented, or a host's `batch` are too few."""

    @property
    def class_conditional(self) -> bool:
        """Whether its penalty depends on the labels: it then pulls each image towards its class."""
        return self.alignment == "class"

    @property
    def idle(self) -> tuple[str, ...]:
        """What is set and does nothing, and why. A search opens such fields beside those they need."""
        covariances = getattr(self, "stage_covariances", False)
        compared = getattr(self, "covariance", "pooled") != "none" and getattr(self, "covariance_weight", 1.0) > 0
        found = {
            f"stages_weight {self.stages_weight:g} without stages": self.stages_weight != 1 and not self.stages,
            "stage_covariances without stages": covariances and not self.stages,
            "stage_covariances where no covariance is compared": covariances and self.stages and not compared,
        }
        return tuple(f"guidance {what}" for what, set_in_vain in found.items() if set_in_vain)

    @property
    def held_out(self) -> float:
        """Share of each class's condensed images it must not learn from, rounded down."""
        return 0.0

    @abstractmethod
    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> State:
        """A fresh state. `condensed` (N, D): features of the images it may learn from; `labels` (N,) their classes.

        With several views, N is their number times that of the images, which come in the same order in each view.
        """

    @abstractmethod
    def penalty(self, state: State, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A scalar, not yet weighted, differentiable in `fake`."""

    @abstractmethod
    def update(
        self, state: State, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn from fakes and as many condensed images of the same `labels` (B,); terms to be logged.

        `real` is empty where the guidance does not look at condensed images in each step.
        """

    def evaluate_held_out(
        self, state: State, shown: Tensor, held_out: Tensor, fakes: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Terms to be logged once a round of condensed images it never learnt from; the state stays as it is.

        `held_out` (M, D): features of these under views of the condensed side; `fakes` (M, D): under views of the
        fakes' side, as a perfect generator would make them; `shown` (M, D): of images it learns from; all of the
        classes `labels` (M,).
        """
        return {}

    def start(
        self,
        teacher: Teacher,
        condensed: Samples | None,
        rng: Streams,
        host_augment: HostAugment = lambda images, stream: images,
    ) -> State:
        """`init` on the observed condensed set, evenly thinned if large.

        Views are drawn as `augment` says, from stream `augment/guide`, by `host_augment` where the host's are wanted.
        Raises `InputError` where there is no condensed set, or the teacher has not the layers that are compared.
        """
        require(condensed is not None, "condensed set of a guided run", None, "a condensation (or guidance none)")
        assert condensed is not None
        shown, _ = self._split(condensed, teacher.num_classes)
        self.check(teacher)
        shown = shown[:: -(-len(shown) // MOST_AT_START)]
        with torch.no_grad():
            views = [shown.images]
            if self.views:
                count = max(1, min(self.views, MOST_AT_START // max(1, len(shown))))
                views = [self.view(shown.images, teacher, host_augment, rng) for _ in range(count)]
            looks = [self.layer_features(teacher, view) for view in views]
            parts = [torch.cat(layer) for layer in zip(*looks, strict=True)]
            return self.init_from_features(teacher, parts, shown.labels.repeat(len(views)), rng, len(views))

    def init_from_features(
        self, teacher: Teacher, parts: list[Tensor], labels: Tensor, rng: Streams, views: int
    ) -> State:
        """`init` on the features (N, D) of each layer, where there are several in units of their spread.

        They are of `views` of all condensed images in turn, with `labels` (N,).
        """
        if not self.stages and not self.noise:
            return self._init(teacher, side_by_side(parts), labels, rng, Layout((), views))
        widths = tuple(part.shape[1] for part in parts)
        spreads = [spread(part, labels, teacher.num_classes) for part in parts]

        def columns(values: list[Tensor]) -> Tensor:
            return torch.cat([value.expand(width) for value, width in zip(values, widths, strict=True)])

        features, layout, units = side_by_side(parts), Layout((), views), None
        if self.stages:
            units, layout = 1 / columns(spreads), Layout(widths, views)
            features, spreads = features * units, [torch.ones_like(one) for one in spreads]
        state = self._init(teacher, features, labels, rng, layout)
        carries, name = isinstance(state, GuidanceState), getattr(self, "name", type(self).__name__)
        accepted = "a subclass of GuidanceState; or stages 0 and noise 0"
        require(carries, f"state of guidance {name} with stages or noise", type(state).__name__, accepted)
        assert isinstance(state, GuidanceState)
        state.units = units
        state.jitter = columns([one / width**0.5 for one, width in zip(spreads, widths, strict=True)])
        return state

    def _init(self, teacher: Teacher, features: Tensor, labels: Tensor, rng: Streams, layout: Layout) -> State:
        """`init`. Raises `InputError` where a class written before there were layouts would have to be told of one."""
        given = (teacher, features, labels, rng)
        try:
            signature(self.init).bind(*given, layout)
        except TypeError:
            name = getattr(self, "name", type(self).__name__)
            what = f"layers and views of guidance {name}, whose init takes no layout,"
            one = "1 and 1: no stages, and no views; or give init a fifth parameter, layout"
            require(layout == ONE_LAYER, what, (max(1, len(layout.widths)), layout.views), one)
            return self.init(*given)
        return self.init(*given, layout)

    def layer_features(self, teacher: Teacher, images: Tensor) -> list[Tensor]:
        """Features (B, D) of each compared layer, not scaled, of images (B, C, H, W) as they are."""
        layers = self.tapped_layers(teacher)
        looks = [self.pooled_features(teacher.observe(part, layers, bn=False), layers) for part in images.split(512)]
        return [torch.cat(layer) for layer in zip(*looks, strict=True)]

    def pooled_features(self, observation: Observation, tapped: tuple[str, ...]) -> list[Tensor]:
        """Features (B, D) of each compared layer, not scaled, of a look with all that is `tapped`."""
        return [observation.pooled(name) for name in (self.layer, *tapped[len(self.layers) :])]

    def scaled_features(self, state: State, parts: list[Tensor]) -> Tensor:
        """Features (B, D) of each layer side by side, as `init` and all that follows get them."""
        if not self.stages:
            return parts[0]
        assert isinstance(state, GuidanceState)
        assert state.units is not None
        return side_by_side(parts) * state.units

    def perturbed(self, state: State, real: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Condensed features (B, D) of a step, mixed within their classes `labels` (B,) and made noisy as it is set."""
        if self.mixup:
            partner = real[same_class_rows(labels, labels, rng)]
            real = real.lerp(partner, self.mixup * torch.rand(len(real), 1, generator=rng, device=real.device))
        if self.noise:
            assert isinstance(state, GuidanceState)
            assert state.jitter is not None
            draw = torch.randn(real.shape, generator=rng, device=real.device)
            real = real + self.noise * state.jitter * draw
        return real

    def view(self, images: Tensor, teacher: Teacher, host_augment: HostAugment, rng: Streams) -> Tensor:
        """Condensed images (B, C, H, W), augmented as the guidance wants them, from stream `augment/guide`."""
        if self.augment != "dsa":
            images = host_augment(images, rng["augment/guide"])
        return images if self.augment == "host" else guides_dsa(images, teacher, rng)

    def bind(
        self,
        state: State,
        *,
        teacher: Teacher,
        condensed: Samples | None,
        host_augment: HostAugment,
        rng: Streams,
        progress: float = 0.0,
    ) -> Guide:
        """The guide for one round, at `progress` of the trial (0 to 1)."""
        assert condensed is not None
        shown, held_out = self._split(condensed, teacher.num_classes)
        weight = self.weight * self.schedule.at(progress)
        return BoundGuide(self, state, teacher, shown, held_out, host_augment, rng, weight)

    def read(self, guide: Guide) -> dict[str, float]:
        """Means over the round of what `update` logged, and what `examine` finds at its end."""
        assert isinstance(guide, BoundGuide)
        return guide.read()

    def _split(self, condensed: Samples, num_classes: int) -> tuple[Samples, Samples]:
        """(Images it may learn from, those held out: the last of each class)."""
        if not self.held_out:
            return condensed, condensed[:0]
        counts = torch.bincount(condensed.labels, minlength=num_classes)
        hot = torch.nn.functional.one_hot(condensed.labels, num_classes)
        place = (hot.cumsum(0) * hot).sum(1)
        shown = place <= (counts - (counts * self.held_out).long())[condensed.labels]
        return condensed[shown], condensed[~shown]


@dataclass
class BoundGuide:
    """One guidance for one round. See `Guide`."""

    guidance: Guidance
    state: object
    teacher: Teacher
    condensed: Samples
    held_out: Samples
    host_augment: HostAugment
    rng: Streams
    weight: float
    meter: Meter = field(default_factory=lambda: Meter("guidance"))
    _last: Tensor | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the guidance."""
        return self.guidance.tapped_layers(self.teacher)

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """Weighted penalty; under `dsa` on a look of its own."""
        fake = self._fake(images, observation)
        self._last = fake.detach()
        penalty = self.weight * self.guidance.penalty(self.state, fake, labels, rng=self.rng["augment/guide"])
        # Even a gradient of zeros can change the memory layout, and with it the last bits, of the host's own.
        return penalty if self.weight else penalty.detach()

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Draw condensed images of the same labels, look at them, learn. Fakes: as the penalty just saw them."""
        fake = self._fake(images, observation).detach() if self._last is None else self._last
        self._last = None
        real = self._real(labels) if self.guidance.uses_condensed_batches else fake[:0]
        with torch.enable_grad():
            terms = self.guidance.update(self.state, fake, real, labels, rng=self.rng["augment/guide"])
        self.meter.add(**terms)

    def start(self, labels: Tensor) -> Start | None:
        """At condensed images it may learn from, drawn from a stream of their own: `start`."""
        from_guides = self.guidance.from_guides
        count = from_guides.count(len(labels))
        if not count:
            return None
        rng = self.rng["start"]
        rows = same_class_rows(self.condensed.labels, labels[:count], rng)
        return from_guides.start(self.condensed.images[rows], rng)

    @torch.no_grad()
    def _real(self, labels: Tensor) -> Tensor:
        rng = self.rng["augment/guide"]
        rows = same_class_rows(self.condensed.labels, labels, rng)
        real = self._features(self._view(self.condensed.images[rows]))
        return self.guidance.perturbed(self.state, real, labels, rng)

    def read(self) -> dict[str, float]:
        """What was logged, with how the guidance judges the images held out."""
        if len(self.held_out):
            self.meter.add(**self._examine())
        return self.meter.read()

    @torch.no_grad()
    def _examine(self) -> dict[str, Tensor]:
        """What the guidance says of several views of the images held out, and of as many it learns from."""
        images, labels, rng = self.held_out.images, self.held_out.labels, self.rng["augment/guide"]
        views = range(min(VIEWS, -(-VIEWED // len(images))))
        rows = [same_class_rows(self.condensed.labels, labels, rng) for _ in views]

        def features(batches: list[Tensor]) -> Tensor:
            return self._features(torch.cat(batches))

        shown = features([self._view(self.condensed.images[drawn]) for drawn in rows])
        held_out = fakes = features([self._view(images) for _ in views])
        if self.guidance.augment == "condensed":
            fakes = features([self.host_augment(images, rng) for _ in views])
        return self.guidance.evaluate_held_out(self.state, shown, held_out, fakes, labels.repeat(len(views)), rng=rng)

    def _fake(self, images: Tensor, observation: Observation) -> Tensor:
        """Features of fakes, augmented as the guidance wants them."""
        if self.guidance.augment == "dsa":
            observation = self.teacher.observe(guides_dsa(images, self.teacher, self.rng), self.layers, bn=False)
        return self.guidance.scaled_features(self.state, self.guidance.pooled_features(observation, self.layers))

    def _features(self, images: Tensor) -> Tensor:
        """Of images as they are."""
        return self.guidance.scaled_features(self.state, self.guidance.layer_features(self.teacher, images))

    def _view(self, images: Tensor) -> Tensor:
        """Condensed images, augmented as the guidance wants them."""
        return self.guidance.view(images, self.teacher, self.host_augment, self.rng)


def guides_dsa(images: Tensor, teacher: Teacher, rng: Streams) -> Tensor:
    """DSA of images (B, C, H, W) from stream `augment/guide`."""
    name = "augment/guide"
    return dsa(images, rng=rng[name], choice=rng.host(name), flip=teacher.flip_ok)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """(B, D) of each layer to (B, sum of D)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def spread(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Root of the mean squared distance of features (N, D) from their class's mean, a scalar, by degrees of freedom.

    Where no class has two that differ, the distance from the mean of all; 1 where all are equal.
    """
    hot = torch.nn.functional.one_hot(labels, num_classes).to(features.dtype)
    counts = hot.sum(0)
    means = hot.T @ features / counts.clamp_min(1)[:, None]
    apart = (features - means[labels]).square().sum()
    total = (features - features.mean(0)).square().sum()
    within = apart / (counts - 1).clamp_min(0).sum().clamp_min(1)
    overall = total / max(1, len(features) - 1)
    level = SAME * features.square().sum()
    squared = torch.where(apart > level, within, torch.where(total > level, overall, torch.ones_like(overall)))
    return squared.sqrt()


def same_class_rows(known: Tensor, wanted: Tensor, rng: torch.Generator) -> Tensor:
    """For each label of `wanted` (B,) a random row of `known` (N,) that carries it; a class without rows gives any."""
    # Found by search: counting the labels would wait for the device.
    sorted_labels, order = known.sort(stable=True)
    first = torch.searchsorted(sorted_labels, wanted)
    counts = torch.searchsorted(sorted_labels, wanted, right=True) - first
    uniform = torch.rand(len(wanted), generator=rng, device=wanted.device)
    return order[(first + (uniform * counts).long()).clamp(max=len(known) - 1)]


class Unguided:
    """The `Guide` of a host that runs as published: it says nothing and learns nothing."""

    layers: tuple[str, ...] = ()

    def penalty(self, images: Tensor, observation: Observation, labels: Tensor) -> Tensor:
        """Zero."""
        return observation.logits.new_zeros(())

    def update(self, images: Tensor, observation: Observation, labels: Tensor) -> None:
        """Nothing."""

    def start(self, labels: Tensor) -> Start | None:
        """Where the host has them start."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Method):
    """Member of the family, so that nobody asks whether there is a guidance."""

    name: Literal["none"] = "none"
    layers: ClassVar[tuple[str, ...]] = ()
    from_guides: ClassVar[FromGuides] = FromGuides()
    weight: ClassVar[float] = 0.0
    schedule: ClassVar[Schedule] = Schedule()
    class_conditional: ClassVar[bool] = False
    idle: ClassVar[tuple[str, ...]] = ()

    def check(self, teacher: Teacher) -> None:
        """It compares no layers."""

    def check_use(self, teacher: Teacher, ipc: int, batch: int, host_augment: HostAugment) -> None:
        """None are too few."""

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams, host_augment: object = None) -> None:
        """No state."""

    def bind(self, state: None, **_: object) -> Guide:
        """A guide that says nothing."""
        return Unguided()

    def read(self, guide: Guide) -> dict[str, float]:
        """Nothing was logged."""
        return {}
