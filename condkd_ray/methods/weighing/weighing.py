"""What a weighing is: how much each image counts in the per-sample terms of the inversion that makes it.

Letters: B batch, K classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from condkd_ray.core.method import Method
from condkd_ray.methods.interfaces import Weigh


@dataclass(frozen=True, kw_only=True)
class Weighing(Method, ABC):
    """Contract of the family."""

    reads_memory: ClassVar[bool] = True
    """Whether weights depend on what the memory holds."""

    @abstractmethod
    def bind(self, class_counts: Tensor) -> Weigh:
        """The weights of one round, given how many samples of each class (K,) the memory holds at its start.

        The class of what is held is the teacher's, on the device the weights are wanted on.
        """
