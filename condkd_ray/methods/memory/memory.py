"""Contract of the replay memories, policies of keeping and drawing samples; and the memories that use no logits.

A memory's state holds ids and numbers (in `generative` also networks), never images. The memories here keep everything,
a random sample, the latest round, or a bank.

- The reservoir is an alternative to MB-DFKD's first-in-first-out bank (our choice). A bank spans its latest entries
  only; in a reservoir the first round counts as much as the last.
- MB-DFKD's memory bank (Binici et al., WACV 2022, arXiv 2108.05698) replays a few entries along with fresh images.
  Sizes and period are those of its re-implementation by the authors of LRA (CVPR 2023); the original's own are not
  known.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import Method, Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, cat
from condkd_ray.core.task import BOTH
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")


class Draw(NamedTuple):
    """Drawn samples, their ids (n,) and importance weights (n,).

    An id is -1 if the sample is in no store; the weights are ones if all samples have the same weight. The ids lie
    where they were drawn: on the CPU, or on the device if the draw depends on the student's outputs.
    """

    samples: Samples
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class ReplayMemory(Method, ABC, Generic[State]):
    """Contract of the replay memories.

    Samples that enter and leave a memory have logits only if the config's `keeps_logits` is true.
    Draws come from stream `draw`; streams `reservoir` and `replay` belong to the memories `reservoir` and `generative`.
    """

    reads_logits: ClassVar[bool] = True
    """True if keeping or drawing depends on the teacher's logits of the samples, which are then stored."""

    @abstractmethod
    def init(self, teacher: Teacher, rng: Streams) -> State:
        """Return an empty memory. Raises `InputError` if it cannot hold the teacher's images."""

    @abstractmethod
    def add(self, state: State, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Store a round's samples and drop from the store the ids that are no longer kept; returns metrics, if any."""

    @abstractmethod
    def draw(self, state: State, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Return `count` samples for one student step."""

    @abstractmethod
    def live(self, state: State) -> Tensor:
        """Return (n,) ids that may still be drawn."""

    def held_bytes(self, state: State) -> int:
        """Return the bytes that the memory needs in addition to the store."""
        return 0

    def feedback(self, state: State, ids: Tensor, priority: Tensor) -> None:
        """Update the priorities (n,) of drawn samples; only prioritised memories use them."""


def gathered(store: Store, ids: Tensor) -> Draw:
    """Return the samples of `ids` with equal weights."""
    samples = store.gather(ids)
    return Draw(samples, ids, torch.ones(len(ids), device=samples.labels.device))


def interleaved(fresh: Draw, replayed: Draw) -> Draw:
    """Return both draws evenly mixed, so that the first part of the batch has about the same share of each."""
    positions = [(torch.arange(len(part.ids)) + 0.5) / max(len(part.ids), 1) for part in (fresh, replayed)]
    order = torch.cat(positions).argsort(stable=True)
    device = replayed.samples.labels.device
    samples = cat([fresh.samples, replayed.samples])
    weights = torch.cat([fresh.weights, replayed.weights])
    rows = sent(order, device)
    return Draw(samples[rows], torch.cat([fresh.ids, replayed.ids])[order], weights[rows])


def no_ids() -> Tensor:
    """Return an empty vector of ids, (0,) int64."""
    return torch.empty(0, dtype=torch.int64)


@dataclass
class IdQueue:
    """Ids returned in disjoint groups, in a random order that is drawn again when all ids have been used."""

    ids: Tensor = field(default_factory=no_ids)
    order: Tensor = field(default_factory=no_ids)
    cursor: int = 0

    def take(self, count: int, rng: Streams) -> Tensor:
        """Return the next `count` ids; if too few are left, ids of the next random order follow."""
        assert len(self.ids), "taken from before any samples were added"
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


@dataclass
class KeptIds:
    """Ids kept, oldest first."""

    ids: Tensor


KeptState = TypeVar("KeptState", bound=KeptIds)


class Uniform(ReplayMemory[KeptState]):
    """Base class of the memories that draw uniformly, with replacement, from all samples they keep."""

    def draw(self, state: KeptState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Draw uniformly, with replacement."""
        rows = torch.randint(len(state.ids), (count,), generator=rng.host("draw"))
        return gathered(store, state.ids[rows])

    def live(self, state: KeptState) -> Tensor:
        """Return all kept ids."""
        return state.ids


@dataclass(frozen=True, kw_only=True)
class Growing(Uniform[KeptIds]):
    """All samples ever made, drawn uniformly with replacement."""

    ours = ("capacity",)
    reads_logits = False
    tasks = BOTH
    name: Literal["growing"] = "growing"
    capacity: int | None = None
    """Samples kept; the oldest are dropped first. None keeps all."""

    def __post_init__(self) -> None:
        require(self.capacity is None or self.capacity >= 1, "memory capacity", self.capacity, "null or >= 1")

    def init(self, teacher: Teacher, rng: Streams) -> KeptIds:
        """Return an empty memory."""
        return KeptIds(no_ids())

    def add(self, state: KeptIds, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Append the samples; drop the oldest beyond the capacity."""
        ids = torch.cat([state.ids, store.append(samples)])
        excess = 0 if self.capacity is None else max(0, len(ids) - self.capacity)
        store.drop(ids[:excess])
        state.ids = ids[excess:]
        return {}


@dataclass
class ReservoirState(KeptIds):
    """Adds the random key of each id."""

    keys: Tensor


@dataclass(frozen=True, kw_only=True)
class Reservoir(Uniform[ReservoirState]):
    """Keeps the samples with the smallest random keys; each sample gets a uniform key from stream `reservoir`.

    At any time, all sets of `capacity` of the samples made so far are equally likely to be the kept ones. A store frees
    whole rounds, and some sample of most rounds is kept: a process may hold more than the live samples that are
    counted.
    """

    ours = ("capacity",)
    reads_logits = False
    tasks = BOTH
    name: Literal["reservoir"] = "reservoir"
    capacity: int = 1280
    """Samples kept; by default as many as in MB-DFKD's bank."""

    def __post_init__(self) -> None:
        require(self.capacity >= 1, "reservoir capacity", self.capacity, "an integer >= 1")

    def init(self, teacher: Teacher, rng: Streams) -> ReservoirState:
        """Return an empty memory."""
        return ReservoirState(no_ids(), torch.empty(0, dtype=torch.float64))

    def add(self, state: ReservoirState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Keep the smallest keys of old and new samples; drop the others."""
        ids = torch.cat([state.ids, store.append(samples)])
        # 53 random bits make two equal keys practically impossible.
        fresh = torch.rand(len(samples), dtype=torch.float64, generator=rng.host("reservoir"))
        keys = torch.cat([state.keys, fresh])
        kept, lost = (rows.sort().values for rows in keys.argsort().tensor_split([self.capacity]))
        store.drop(ids[lost])
        state.ids, state.keys = ids[kept], keys[kept]
        return {}


@dataclass(frozen=True, kw_only=True)
class Latest(ReplayMemory[IdQueue]):
    """The latest round only, for inversions such as DAFL, whose rounds make enough images for all student steps."""

    reads_logits = False
    tasks = BOTH
    name: Literal["latest"] = "latest"

    def init(self, teacher: Teacher, rng: Streams) -> IdQueue:
        """Return an empty memory."""
        return IdQueue()

    def add(self, state: IdQueue, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Replace the old round by the new one."""
        store.drop(state.ids)
        fresh = IdQueue(store.append(samples))
        state.ids, state.order, state.cursor = fresh.ids, fresh.order, fresh.cursor
        return {}

    def draw(self, state: IdQueue, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Return the next samples, disjoint from the previous ones until all of the round were drawn."""
        return gathered(store, state.take(count, rng))

    def live(self, state: IdQueue) -> Tensor:
        """Return the latest round's ids."""
        return state.ids


@dataclass
class BankState:
    """The fresh round, the entries (each a vector of ids, oldest first), and the number of rounds so far."""

    fresh: IdQueue
    entries: list[Tensor]
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Bank(ReplayMemory[BankState]):
    """A ring of entries; each draw takes `share` of its samples from one random entry, the others are fresh.

    Departure: an entry is made of the first images of a round when they are stored; the re-run by LRA's authors makes
    it after the student's steps, of the epoch's last batch.
    """

    paper = "Binici et al., WACV 2022"
    reads_logits = False
    tasks = BOTH
    name: Literal["bank"] = "bank"
    entries: int = 10
    """Entries kept; the oldest is dropped first."""
    entry_size: int = 128
    """Samples of an entry: the first ones of a round."""
    period: int = 5
    """Rounds between two entries; the first round makes one."""
    share: float = 1 / 9
    """Share of each draw that comes from the bank."""

    def __post_init__(self) -> None:
        for what in ("entries", "entry_size", "period"):
            require(getattr(self, what) >= 1, f"bank {what}", getattr(self, what), "an integer >= 1")
        require(0 <= self.share <= 1, "bank share", self.share, "0 <= share <= 1")

    def init(self, teacher: Teacher, rng: Streams) -> BankState:
        """Return an empty memory."""
        return BankState(IdQueue(), [])

    def add(self, state: BankState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Replace the fresh ids; every `period` rounds the first of them become an entry."""
        before = self.live(state)
        state.fresh = IdQueue(store.append(samples))
        if state.rounds % self.period == 0:
            state.entries = [*state.entries, state.fresh.ids[: self.entry_size]][-self.entries :]
        state.rounds += 1
        store.drop(before[~torch.isin(before, self.live(state))])
        return {}

    def draw(self, state: BankState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Return fresh samples with those of one random entry mixed in evenly."""
        replayed = round(self.share * count)
        which, rows = torch.rand(1 + replayed, generator=rng.host("draw")).tensor_split([1])
        entry = state.entries[int(which * len(state.entries))]
        old = entry[(rows * len(entry)).long()]
        return interleaved(gathered(store, state.fresh.take(count - replayed, rng)), gathered(store, old))

    def live(self, state: BankState) -> Tensor:
        """Return the fresh ids and the ids of all entries."""
        return torch.cat([state.fresh.ids, *state.entries]).unique()
