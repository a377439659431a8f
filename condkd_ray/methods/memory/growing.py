"""A pool that only grows, or forgets its oldest beyond a capacity: the memory of CMI and Fast."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.memory.memory import Draw, ReplayMemory, gathered, no_ids
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher


@dataclass
class GrowingState:
    """Ids kept, oldest first."""

    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Growing(ReplayMemory[GrowingState]):
    """Everything ever made, drawn uniformly with replacement."""

    ours = ("capacity",)
    reads_logits = False
    name: Literal["growing"] = "growing"
    capacity: int | None = None
    """Samples kept; the oldest go first. None keeps all."""

    def __post_init__(self) -> None:
        require(self.capacity is None or self.capacity >= 1, "memory capacity", self.capacity, "null or >= 1")

    def init(self, teacher: Teacher, rng: Streams) -> GrowingState:
        """Empty."""
        return GrowingState(no_ids())

    def add(self, state: GrowingState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Append; drop what exceeds the capacity."""
        ids = torch.cat([state.ids, store.append(samples)])
        excess = 0 if self.capacity is None else max(0, len(ids) - self.capacity)
        store.drop(ids[:excess])
        state.ids = ids[excess:]
        return {}

    def draw(self, state: GrowingState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Uniform, with replacement."""
        rows = torch.randint(len(state.ids), (count,), generator=rng.host("draw"))
        return gathered(store, state.ids[rows])

    def live(self, state: GrowingState) -> Tensor:
        """All kept ids."""
        return state.ids
