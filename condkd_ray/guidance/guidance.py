"""What every guidance is, and the guide an inversion is handed: a guidance bound to its state and the condensed set.

Letters: B batch, D features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from condkd_ray.augment import dsa
from condkd_ray.guide import Guide
from condkd_ray.method import Meter, Method, require
from condkd_ray.samples import Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Observation, Teacher

State = TypeVar("State")
Augmentation = Literal["host", "condensed", "dsa"]
HostAugment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Guidance(Method, ABC, Generic[State]):
    """Contract of the family: a penalty on what the teacher saw of fakes, and learning from fakes beside condensed.

    `penalty` and `update` see observations only; drawing, augmenting and observing are the bound guide's.
    """

    weight: float = 1.0
    """Factor of the penalty in the host's loss (lambda_FA); 0 equals no guidance bit for bit."""
    augment: Augmentation = "host"
    """`host`: fakes as the host saw them, condensed under the host's own augmentation. `condensed`: DSA on the
    condensed batch besides. `dsa`: the guide looks at DSA-augmented fakes and condensed; the host never sees DSA."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "guidance weight", self.weight, ">= 0")

    @property
    def layers(self) -> tuple[str, ...]:
        """Teacher layers it needs tapped; none: the penultimate features always come."""
        return ()

    @abstractmethod
    def init(self, teacher: Teacher, condensed: Observation, labels: Tensor, rng: Streams) -> State:
        """A fresh state. `condensed`: the teacher's look at the whole condensed set; `labels` its classes."""

    @abstractmethod
    def penalty(self, state: State, seen: Observation, labels: Tensor) -> Tensor:
        """A scalar, not yet weighted, differentiable in `seen`."""

    @abstractmethod
    def update(self, state: State, fake: Observation, real: Observation, labels: Tensor) -> dict[str, Tensor]:
        """Learn from fakes and as many condensed images of the same `labels` (B,); terms to be logged."""

    def start(self, teacher: Teacher, condensed: Samples | None, rng: Streams) -> State:
        """`init` on the observed condensed set. Raises `InputError` where there is none."""
        require(condensed is not None, "condensed set of a guided run", None, "a condensation (or guidance none)")
        assert condensed is not None
        with torch.no_grad():
            seen = teacher.observe(condensed.images, self.layers)
        return self.init(teacher, seen, condensed.labels, rng)

    def bind(
        self, state: State, *, teacher: Teacher, condensed: Samples | None, host_augment: HostAugment, rng: Streams
    ) -> Guide:
        """The guide for one round."""
        assert condensed is not None
        return BoundGuide(self, state, teacher, condensed, host_augment, rng)

    def read(self, guide: Guide) -> dict[str, float]:
        """Means over the round of what `update` logged."""
        assert isinstance(guide, BoundGuide)
        return guide.meter.read()


@dataclass
class BoundGuide:
    """One guidance for one round. See `condkd_ray.guide.Guide`."""

    guidance: Guidance
    state: object
    teacher: Teacher
    condensed: Samples
    host_augment: HostAugment
    rng: Streams
    meter: Meter = field(default_factory=lambda: Meter("guidance"))
    _own: Observation | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the guidance."""
        return self.guidance.layers

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Weighted penalty; under `dsa` on a look of its own."""
        if self.guidance.augment == "dsa":
            seen = self.teacher.observe(self._dsa(images), self.layers)
            self._own = seen.detach()
        penalty = self.guidance.weight * self.guidance.penalty(self.state, seen, labels)
        # Even a gradient of zeros can change the memory layout, and with it the last bits, of the host's own.
        return penalty if self.guidance.weight else penalty.detach()

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Draw condensed images of the same labels, look at them, learn."""
        fake = seen.detach() if self._own is None else self._own
        with torch.no_grad():
            real = self.teacher.observe(self._real(labels), self.layers)
        with torch.enable_grad():
            self.meter.add(**self.guidance.update(self.state, fake, real, labels))

    def _real(self, labels: Tensor) -> Tensor:
        rows = same_class_rows(self.condensed.labels, labels, self.teacher.num_classes, self.rng["augment/guide"])
        images = self.condensed.images[rows]
        if self.guidance.augment != "dsa":
            images = self.host_augment(images, self.rng["augment/guide"])
        return images if self.guidance.augment == "host" else self._dsa(images)

    def _dsa(self, images: Tensor) -> Tensor:
        return dsa(
            images,
            rng=self.rng["augment/guide"],
            choice=self.rng.host("augment/guide"),
            flip=self.teacher.flip_ok,
        )


def same_class_rows(known: Tensor, wanted: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
    """For each label of `wanted` (B,) a random row of `known` (N,) that carries it; a class without rows gives any."""
    order = known.argsort(stable=True)
    counts = torch.bincount(known, minlength=num_classes)
    starts = counts.cumsum(0) - counts
    uniform = torch.rand(len(wanted), generator=rng, device=wanted.device)
    within = (uniform * counts[wanted]).long()
    return order[(starts[wanted] + within).clamp(max=len(known) - 1)]
