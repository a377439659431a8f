"""What every replay memory is: a policy of keeping and drawing. Its state holds ids and counters, never images.

And the memories that look at no answer of a network: everything, a fair sample, the latest round, a bank.

- A reservoir is the alternative to MB-DFKD's first-in-first-out bank (`methods.md` 3.5: that it is useful is inferred,
  so our choice). A bank spans its last entries only; there the first round counts as much as the last.
- MB-DFKD's memory bank (Binici et al., WACV 2022, arXiv 2108.05698) replays a few entries beside fresh images. Sizes
  and period as its re-implementation by the authors of LRA runs them (`methods.md` 3.2); the original's own are not
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
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher

State = TypeVar("State")


class Draw(NamedTuple):
    """Drawn samples, their ids (n,) and importance weights (n,).

    An id is -1 where the sample lies in no store; weights are ones where all count the same. Ids lie where they were
    drawn: on the CPU, or on the device where what the student has said decides.
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
    samples = cat([fresh.samples, replayed.samples])
    weights = torch.cat([fresh.weights, replayed.weights])
    rows = sent(order, device)
    return Draw(samples[rows], torch.cat([fresh.ids, replayed.ids])[order], weights[rows])


def no_ids() -> Tensor:
    """(0,) int64."""
    return torch.empty(0, dtype=torch.int64)


@dataclass
class IdQueue:
    """Ids dealt out in disjoint hands, shuffled anew when they run out; the first deal shuffles too."""

    ids: Tensor = field(default_factory=no_ids)
    order: Tensor = field(default_factory=no_ids)
    cursor: int = 0

    def take(self, count: int, rng: Streams) -> Tensor:
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


@dataclass
class KeptIds:
    """Ids kept, oldest first."""

    ids: Tensor


KeptState = TypeVar("KeptState", bound=KeptIds)


class Uniform(ReplayMemory[KeptState]):
    """Base of the memories that draw uniformly, with replacement, of all that they keep."""

    def draw(self, state: KeptState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Uniform, with replacement."""
        rows = torch.randint(len(state.ids), (count,), generator=rng.host("draw"))
        return gathered(store, state.ids[rows])

    def live(self, state: KeptState) -> Tensor:
        """All kept ids."""
        return state.ids


@dataclass(frozen=True, kw_only=True)
class Growing(Uniform[KeptIds]):
    """Everything ever made, drawn uniformly with replacement."""

    ours = ("capacity",)
    reads_logits = False
    name: Literal["growing"] = "growing"
    capacity: int | None = None
    """Samples kept; the oldest go first. None keeps all."""

    def __post_init__(self) -> None:
        require(self.capacity is None or self.capacity >= 1, "memory capacity", self.capacity, "null or >= 1")

    def init(self, teacher: Teacher, rng: Streams) -> KeptIds:
        """Empty."""
        return KeptIds(no_ids())

    def add(self, state: KeptIds, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Append; drop what exceeds the capacity."""
        ids = torch.cat([state.ids, store.append(samples)])
        excess = 0 if self.capacity is None else max(0, len(ids) - self.capacity)
        store.drop(ids[:excess])
        state.ids = ids[excess:]
        return {}


@dataclass
class ReservoirState(KeptIds):
    """With the random key of each."""

    keys: Tensor


@dataclass(frozen=True, kw_only=True)
class Reservoir(Uniform[ReservoirState]):
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


@dataclass(frozen=True, kw_only=True)
class Latest(ReplayMemory[IdQueue]):
    """What adversarial hosts (DAFL) use: each student step gets fresh images while they last."""

    reads_logits = False
    name: Literal["latest"] = "latest"

    def init(self, teacher: Teacher, rng: Streams) -> IdQueue:
        """Empty."""
        return IdQueue()

    def add(self, state: IdQueue, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """The new round replaces the old."""
        store.drop(state.ids)
        fresh = IdQueue(store.append(samples))
        state.ids, state.order, state.cursor = fresh.ids, fresh.order, fresh.cursor
        return {}

    def draw(self, state: IdQueue, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """The next disjoint hand."""
        return gathered(store, state.take(count, rng))

    def live(self, state: IdQueue) -> Tensor:
        """This round's ids."""
        return state.ids


@dataclass
class BankState:
    """The fresh round, the entries (each a vector of ids, oldest first), and the rounds seen."""

    fresh: IdQueue
    entries: list[Tensor]
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Bank(ReplayMemory[BankState]):
    """A ring of entries; each draw takes `share` of its samples from one random entry, the rest fresh.

    Departure: an entry is made when the round's images come, and is of the first of them; LRA makes it after the
    student's steps, of the epoch's last batch.
    """

    paper = "Binici et al., WACV 2022"
    reads_logits = False
    name: Literal["bank"] = "bank"
    entries: int = 10
    """Entries kept; the oldest goes first."""
    entry_size: int = 128
    """Samples of an entry: the first of a round's."""
    period: int = 5
    """Rounds between two entries; the first round makes one."""
    share: float = 1 / 9
    """Share of each draw that comes from the bank, once it has an entry."""

    def __post_init__(self) -> None:
        for what in ("entries", "entry_size", "period"):
            require(getattr(self, what) >= 1, f"bank {what}", getattr(self, what), "an integer >= 1")
        require(0 <= self.share <= 1, "bank share", self.share, "0 <= share <= 1")

    def init(self, teacher: Teacher, rng: Streams) -> BankState:
        """Empty."""
        return BankState(IdQueue(), [])

    def add(self, state: BankState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Fresh ids replace the last round's; every `period` rounds the first of them become an entry."""
        before = self.live(state)
        state.fresh = IdQueue(store.append(samples))
        if state.rounds % self.period == 0:
            state.entries = [*state.entries, state.fresh.ids[: self.entry_size]][-self.entries :]
        state.rounds += 1
        store.drop(before[~torch.isin(before, self.live(state))])
        return {}

    def draw(self, state: BankState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Fresh samples, and evenly among them those of one entry."""
        replayed = round(self.share * count)
        which, rows = torch.rand(1 + replayed, generator=rng.host("draw")).tensor_split([1])
        entry = state.entries[int(which * len(state.entries))]
        old = entry[(rows * len(entry)).long()]
        return interleaved(gathered(store, state.fresh.take(count - replayed, rng)), gathered(store, old))

    def live(self, state: BankState) -> Tensor:
        """Fresh ids and those of all entries."""
        return torch.cat([state.fresh.ids, *state.entries]).unique()
