"""What every replay memory is: a policy of keeping and drawing. Its state holds ids and counters, never images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.method import Method, Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, cat
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")


class Draw(NamedTuple):
    """Drawn samples, their ids (n,) and importance weights (n,).

    An id is -1 where the sample lies in no store; weights are ones where all count the same.
    """

    samples: Samples
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class ReplayMemory(Method, ABC, Generic[State]):
    """Contract of the family.

    The samples it is given and hands on have logits only where the config `keeps_logits`.
    What is drawn comes from stream `draw`; streams `reservoir` and `replay` are those of the memories of these names.
    """

    reads_logits: ClassVar[bool] = True
    """Whether what it keeps or draws depends on the teacher's logits of samples, which are then stored."""

    @abstractmethod
    def init(self, teacher: Teacher, rng: Streams) -> State:
        """An empty memory. Raises `InputError` where it cannot hold what the teacher reads."""

    @abstractmethod
    def add(self, state: State, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Remember a round's samples; tell the store which ids fell out. What it has to log, most often nothing."""

    @abstractmethod
    def draw(self, state: State, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """`count` samples for one student step."""

    @abstractmethod
    def live(self, state: State) -> Tensor:
        """(n,) ids that may still be drawn."""

    def held_bytes(self, state: State) -> int:
        """Bytes it holds beside the store's, where it remembers by other means than samples."""
        return 0

    def feedback(self, state: State, ids: Tensor, priority: Tensor) -> None:
        """Hear how useful drawn samples were; only priority memories listen."""


def gathered(store: Store, ids: Tensor) -> Draw:
    """Samples of `ids` with equal weights."""
    samples = store.gather(ids)
    return Draw(samples, ids, torch.ones(len(ids), device=samples.labels.device))


def interleaved(fresh: Draw, replayed: Draw) -> Draw:
    """Both, evenly mixed: a batch that uses the front of it alone has about the same share of each."""
    places = [(torch.arange(len(part.ids)) + 0.5) / max(len(part.ids), 1) for part in (fresh, replayed)]
    order = torch.cat(places).argsort(stable=True)
    device = replayed.samples.labels.device
    samples = cat([fresh.samples.to(device), replayed.samples])
    weights = torch.cat([fresh.weights.to(device), replayed.weights])
    rows = order.to(device)
    return Draw(samples[rows], torch.cat([fresh.ids, replayed.ids])[order], weights[rows])


def no_ids() -> Tensor:
    """(0,) int64."""
    return torch.empty(0, dtype=torch.int64)


@dataclass
class Deck:
    """Ids dealt out in disjoint hands, shuffled anew when they run out; the first deal shuffles too."""

    ids: Tensor = field(default_factory=no_ids)
    order: Tensor = field(default_factory=no_ids)
    cursor: int = 0

    def deal(self, count: int, rng: Streams) -> Tensor:
        """The next `count` ids; a hand larger than what is left goes on into the next shuffle."""
        assert len(self.ids), "dealt from before anything was remembered"
        parts = [self.ids[:0]]
        while count > 0:
            if self.cursor >= len(self.order):
                self.order = torch.randperm(len(self.ids), generator=rng.host("draw"))
                self.cursor = 0
            part = self.order[self.cursor : self.cursor + count]
            self.cursor += len(part)
            count -= len(part)
            parts.append(self.ids[part])
        return torch.cat(parts)
