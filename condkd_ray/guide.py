"""What an inversion hears: a guide, and the weights of its samples. Protocols, so that it knows no more of either."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from condkd_ray.teacher import Observation


class Guide(Protocol):
    """A guidance bound to its state, the condensed set and the teacher: all an inversion ever sees of it.

    A host observes its augmented images once with `layers`, adds `penalty` to its loss, and after its step calls
    `update`. `images` are (B, C, H, W) before augmentation, `seen` the teacher's look at them after, `labels` (B,).
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


class Weigh(Protocol):
    """Weights of the samples in the per-sample terms of an inversion (SSD-KD's modulating function is one)."""

    def __call__(self, seen: Observation, labels: Tensor) -> Tensor:
        """(B,) weights, without gradient."""
        ...
