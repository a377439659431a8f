"""What an inversion hears: the targets of a round, a guide, and the weights of its samples; and no more of any.

Letters: B batch, K classes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from condkd_ray.models.teacher import Observation


@dataclass(frozen=True)
class Targets:
    """What is wanted of each image of a round: `labels` (B,) int64, and by soft targets more than a class.

    `soft` (B, K): the teacher's whole answer that is wanted, probabilities at `temperature`; `labels` are then their
    largest.
    """

    labels: Tensor
    soft: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def answers(self) -> Tensor:
        """What cross-entropy at `temperature` takes: the soft targets, else the labels."""
        return self.labels if self.soft is None else self.soft


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


class Weigh(Protocol):
    """Weights of the samples in the per-sample terms of an inversion (SSD-KD's modulating function is one)."""

    def __call__(self, seen: Observation, labels: Tensor) -> Tensor:
        """(B,) weights >= 0, without gradient unless the weighing has been told to let one through."""
        ...


def equal_weights(seen: Observation, labels: Tensor) -> Tensor:
    """Every sample counts the same: the `Weigh` of all methods but SSD-KD."""
    return torch.ones(len(labels), device=labels.device)


class Unguided:
    """The `Guide` of a host that runs as published: it says nothing and learns nothing."""

    layers: tuple[str, ...] = ()

    def penalty(self, images: Tensor, seen: Observation, labels: Tensor) -> Tensor:
        """Zero."""
        return seen.logits.new_zeros(())

    def update(self, images: Tensor, seen: Observation, labels: Tensor) -> None:
        """Nothing."""
