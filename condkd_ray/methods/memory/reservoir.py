"""A fair sample of everything ever made, at a fixed size: reservoir sampling.

The alternative to MB-DFKD's first-in-first-out bank (`methods.md` 3.5: that it is useful is inferred, so our choice).
A bank spans its last entries only; here the first round counts as much as the last.
"""

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
class ReservoirState:
    """Ids kept, oldest first, and the random key of each."""

    ids: Tensor
    keys: Tensor


@dataclass(frozen=True, kw_only=True)
class Reservoir(ReplayMemory[ReservoirState]):
    """Each sample gets a uniform random key, of stream `reservoir`; those of the smallest keys stay.

    At every time all sets of `capacity` samples made so far are equally likely to be the ones kept. A store frees whole
    rounds, and of most rounds something stays: a process may hold more than the live samples that are counted.
    """

    ours = ("capacity",)
    reads_logits = False
    name: Literal["reservoir"] = "reservoir"
    capacity: int = 1280
    """Samples kept; as many as MB-DFKD's bank has."""

    def __post_init__(self) -> None:
        require(self.capacity >= 1, "reservoir capacity", self.capacity, "an integer >= 1")

    def init(self, teacher: Teacher, rng: Streams) -> ReservoirState:
        """Empty."""
        return ReservoirState(no_ids(), torch.empty(0, dtype=torch.float64))

    def add(self, state: ReservoirState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Keep the smallest keys of old and new; the rest is dropped."""
        ids = torch.cat([state.ids, store.append(samples)])
        # 53 random bits: two equal keys are out of the question.
        fresh = torch.rand(len(samples), dtype=torch.float64, generator=rng.host("reservoir"))
        keys = torch.cat([state.keys, fresh])
        kept, lost = (rows.sort().values for rows in keys.argsort().tensor_split([self.capacity]))
        store.drop(ids[lost])
        state.ids, state.keys = ids[kept], keys[kept]
        return {}

    def draw(self, state: ReservoirState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Uniform, with replacement."""
        rows = torch.randint(len(state.ids), (count,), generator=rng.host("draw"))
        return gathered(store, state.ids[rows])

    def live(self, state: ReservoirState) -> Tensor:
        """All kept ids."""
        return state.ids
