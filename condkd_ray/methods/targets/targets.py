"""What a source of targets is: it decides what the images of a round are to show.

Letters: B batch, K classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from condkd_ray.core.method import Method
from condkd_ray.core.rng import Streams
from condkd_ray.methods.interfaces import Targets
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class TargetSource(Method, ABC):
    """Contract of the family."""

    soft: ClassVar[bool] = False
    """Whether it gives soft targets; then only inversions that hear answers can be asked."""

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` where the teacher has not what the targets are made of."""

    @abstractmethod
    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Targets of `count` images, on the teacher's device, from stream `targets`."""
