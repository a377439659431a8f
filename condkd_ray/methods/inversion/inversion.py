"""What every inversion is: settings as fields, a state apart, and one verb.

Letters: B batch, C channels, H W height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Method, Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unlabelled
from condkd_ray.methods.interfaces import Guide, Targets, Weigh
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class Inversion(Method, ABC, Generic[State]):
    """Contract of the family.

    A host asks the teacher once a step (`teacher.observe(self.augment(images), guide.layers, bn=self.reads_bn)`), adds
    `guide.penalty(images, seen, labels)` to its loss, takes gradients of its own leaves only
    (`torch.autograd.grad`: teacher, student and guide collect none) and then calls `guide.update` on detached values.
    `Host` does so.
    """

    pixel_space: ClassVar[PixelSpace]
    """How stores keep its images."""
    hears: ClassVar[Literal["nothing", "labels", "answers"]] = "labels"
    """What of the targets it uses: none, the labels alone, or soft targets too. Unconditional methods hear nothing."""
    fresh: ClassVar[bool] = False
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
        return self.hears == "nothing"

    @property
    def asks_student(self) -> bool:
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


@torch.no_grad()
def fresh_images(draw: Callable[[int], Tensor], count: int, batch: int) -> Samples:
    """`count` >= 2 images of an unconditional generator, not yet labelled.

    `draw` makes as many as it is told to. It is asked for near-equal parts, as near to `batch` as these allow: BN in
    the generator must never see a single image.
    """
    parts = max(1, min(round(count / batch), count // 2))
    images = torch.cat([draw(len(part)) for part in torch.arange(count).tensor_split(parts)])
    return unlabelled(images)


def require_bn(teacher: Teacher) -> None:
    """Raise `InputError` unless there are BN statistics to match."""
    accepted = "1 or more, as in resnet-8-16; or inversion soft_target, dafl, zskt, dfad, pre_dfkd, which read none"
    require(bool(teacher.running_bn), "number of the teacher's batch normalisation layers", 0, accepted)
