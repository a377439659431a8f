"""What every guidance is, and the guide an inversion is handed: a guidance bound to its state and the condensed set.

Letters: B batch, D features, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.method import Meter, Method, Schedule, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.data.augment import dsa
from condkd_ray.methods.guidance.from_guides import FromGuides, Start
from condkd_ray.models.observation import PENULTIMATE, Observation
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")
Augmentation = Literal["host", "condensed", "dsa"]
HostAugment = Callable[[Tensor, torch.Generator], Tensor]
MOST_AT_START = 4096
"""Condensed images a state is made from: some compare all pairs, and all real images can be the condensed set."""
VIEWS, VIEWED = 16, 256
"""Views, at most, of each image held out that a guidance is examined on, and about how many are enough in all."""


class Guide(Protocol):
    """A guidance bound to its state, the condensed set and the teacher: all an inversion ever sees of it.

    A host observes its augmented images once with `layers`, adds `penalty` to its loss, and after its step calls
    `update`. `images` are (B, C, H, W) before augmentation, `seen` the teacher's look at them after, `labels` (B,).
    `seen.bn` is empty where the host reads no BN statistics.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers the host has to observe for it."""
        ...

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """A scalar, weighted, differentiable in `images` (directly or through `seen`)."""
        ...

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Learn from a batch the host has just made. Nothing flows back into `images`."""
        ...

    def start(self, labels: Tensor) -> Start | None:
        """Where the first images of a batch of `labels` (B,) start; None: where the host has them start.

        A guide without this method, such as one written before it was there, says None.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Guidance(Method, ABC, Generic[State]):
    """Contract of the family: a penalty on what the teacher saw of fakes, and learning from fakes beside condensed.

    They see features (B, D) of one teacher layer only; drawing, augmenting and observing are the bound guide's.
    """

    weight: float = 1.0
    """Factor of the penalty in the host's loss (lambda_FA); 0 equals no guidance bit for bit."""
    augment: Augmentation = "host"
    """`host`: fakes as the host saw them, condensed under the host's own augmentation. `dsa`: the guide looks at
    DSA-augmented fakes and condensed; the host never sees DSA. `condensed`: as `host`, with DSA on the condensed batch
    alone, so that the two sides differ even where their images do not."""
    layer: str = PENULTIMATE
    """Whose features are compared: `penultimate` (the paper's), or a module of the teacher, its mean over space."""
    schedule: Schedule = Schedule()
    """Factor of the weight over the rounds: a warm-up (`start: 0`) or a curriculum (`end: 0`)."""
    from_guides: FromGuides = FromGuides()
    """Whether batches start at condensed images, whatever the weight; by default at noise, as the host has them."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "guidance weight", self.weight, ">= 0")

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers it needs tapped; the penultimate features always come."""
        return () if self.layer == PENULTIMATE else (self.layer,)

    @property
    def tells_classes(self) -> bool:
        """Whether its penalty depends on the labels: it then pulls each image towards its class."""
        return True

    @property
    def held_out(self) -> float:
        """Share of each class's condensed images it must not learn from, rounded down."""
        return 0.0

    @abstractmethod
    def init(self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams) -> State:
        """A fresh state. `condensed` (N, D): features of the images it may learn from; `labels` (N,) their classes."""

    @abstractmethod
    def penalty(self, state: State, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A scalar, not yet weighted, differentiable in `fake`."""

    @abstractmethod
    def update(
        self, state: State, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn from fakes and as many condensed images of the same `labels` (B,); terms to be logged."""

    def examine(
        self, state: State, shown: Tensor, held_out: Tensor, fakes: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Terms to be logged once a round of condensed images it never learnt from; the state stays as it is.

        `held_out` (M, D): features of these under views of the condensed side; `fakes` (M, D): under views of the
        fakes' side, as a perfect generator would make them; `shown` (M, D): of images it learns from; all of the
        classes `labels` (M,).
        """
        return {}

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams) -> State:
        """`init` on the observed condensed set, evenly thinned if large. Raises `InputError` where there is none."""
        require(condensed is not None, "condensed set of a guided run", None, "a condensation (or guidance none)")
        assert condensed is not None
        shown, _ = self._split(condensed, teacher.num_classes)
        shown = shown[:: -(-len(shown) // MOST_AT_START)]
        with torch.no_grad():
            return self.init(teacher, self.features(teacher, shown.images), shown.labels, rng)

    def features(self, teacher: Teacher, images: Tensor) -> Tensor:
        """What is compared, (B, D), of images (B, C, H, W) as they are."""
        looks = [teacher.observe(part, self.layers, bn=False) for part in images.split(512)]
        return torch.cat([look.pooled(self.layer) for look in looks])

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
        return self.guidance.layers

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Weighted penalty; under `dsa` on a look of its own."""
        fake = self._fake(images, seen)
        self._last = fake.detach()
        penalty = self.weight * self.guidance.penalty(self.state, fake, labels, rng=self.rng["augment/guide"])
        # Even a gradient of zeros can change the memory layout, and with it the last bits, of the host's own.
        return penalty if self.weight else penalty.detach()

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Draw condensed images of the same labels, look at them, learn. Fakes: as the penalty just saw them."""
        fake = self._fake(images, seen).detach() if self._last is None else self._last
        self._last = None
        rows = same_class_rows(self.condensed.labels, labels, self.rng["augment/guide"])
        with torch.no_grad():
            real = self.guidance.features(self.teacher, self._view(self.condensed.images[rows]))
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
            return self.guidance.features(self.teacher, torch.cat(batches))

        shown = features([self._view(self.condensed.images[drawn]) for drawn in rows])
        held_out = fakes = features([self._view(images) for _ in views])
        if self.guidance.augment == "condensed":
            fakes = features([self.host_augment(images, rng) for _ in views])
        return self.guidance.examine(self.state, shown, held_out, fakes, labels.repeat(len(views)), rng=rng)

    def _fake(self, images: Tensor, seen: Observation) -> Tensor:
        """Features of fakes, augmented as the guidance wants them."""
        if self.guidance.augment == "dsa":
            seen = self.teacher.observe(self._dsa(images), self.layers, bn=False)
        return seen.pooled(self.guidance.layer)

    def _view(self, images: Tensor) -> Tensor:
        """Condensed images, augmented as the guidance wants them."""
        if self.guidance.augment != "dsa":
            images = self.host_augment(images, self.rng["augment/guide"])
        return images if self.guidance.augment == "host" else self._dsa(images)

    def _dsa(self, images: Tensor) -> Tensor:
        name = "augment/guide"
        return dsa(images, rng=self.rng[name], choice=self.rng.host(name), flip=self.teacher.flip_ok)


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

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Zero."""
        return seen.logits.new_zeros(())

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
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
    tells_classes: ClassVar[bool] = False

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams) -> None:
        """No state."""

    def bind(self, state: None, **_: object) -> Guide:
        """A guide that says nothing."""
        return Unguided()

    def read(self, guide: Guide) -> dict[str, float]:
        """Nothing was logged."""
        return {}
