"""Equal weights: what every method but SSD-KD does."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from condkd_ray.methods.interfaces import Weigh, equal_weights
from condkd_ray.methods.weighing.weighing import Weighing


@dataclass(frozen=True, kw_only=True)
class Equal(Weighing):
    """Every image counts the same."""

    reads_memory = False
    name: Literal["equal"] = "equal"

    def bind(self, class_counts: Tensor) -> Weigh:
        """Ones."""
        return equal_weights
