"""What every inversion is: settings as fields, a state apart, and one verb.

Letters: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Weigh
from condkd_ray.method import Method, Metrics, require
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Observation, Teacher

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class Inversion(Method, ABC, Generic[State]):
    """Contract of the family.

    A host asks the teacher once a step (`teacher.observe(self.augment(images), guide.layers)`), adds
    `guide.penalty(images, seen, labels)` to its loss, takes gradients of its own leaves only
    (`torch.autograd.grad`: teacher, student and guide collect none) and then calls `guide.update` on detached values.
    """

    pixel_space: ClassVar[PixelSpace]
    """How stores keep its images."""

    @property
    @abstractmethod
    def images_per_round(self) -> int:
        """Images a call of `synthesize` gives."""

    @property
    def warm_up(self) -> int:
        """Rounds before the student's first step, in which it only fills the memory."""
        return 0

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """What the host does to images before the teacher sees them; the condensed ones get the same."""
        return images

    @abstractmethod
    def init(self, teacher: Teacher, rng: Streams) -> State:
        """A fresh state, on the teacher's device."""

    @abstractmethod
    def synthesize(
        self,
        state: State,
        targets: Tensor,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """One round: `images_per_round` images for the labels `targets` (B,), and the means of its loss terms.

        `student` comes in eval mode and is left as it was. Unconditional methods ignore the targets and label by the
        teacher's argmax. Raises `NonFiniteError` naming the first loss term that was NaN or infinite.
        """


def equal_weights(seen: Observation, labels: Tensor) -> Tensor:
    """Every sample counts the same: the `Weigh` of all methods but SSD-KD."""
    return torch.ones(len(labels), device=labels.device)


def require_bn(teacher: Teacher) -> None:
    """Raise `InputError` unless there are BN statistics to match."""
    accepted = "1 or more, as in resnet-8-16; or inversion dafl, which reads none"
    require(bool(teacher.running_bn), "number of the teacher's batch normalisation layers", 0, accepted)
