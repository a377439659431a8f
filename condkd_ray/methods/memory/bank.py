"""MB-DFKD's memory bank (Binici et al., WACV 2022, arXiv 2108.05698): a few entries replayed beside fresh images.

Sizes and period as its re-implementation by the authors of LRA runs them (`methods.md` 3.2); the original's own are
not known.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.memory.memory import Deck, Draw, ReplayMemory, gathered, interleaved
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher


@dataclass
class BankState:
    """The fresh round, the entries (each a vector of ids, oldest first), and the rounds seen."""

    fresh: Deck
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
        return BankState(Deck(), [])

    def add(self, state: BankState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """Fresh ids replace the last round's; every `period` rounds the first of them become an entry."""
        before = self.live(state)
        state.fresh = Deck(store.append(samples))
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
        return interleaved(gathered(store, state.fresh.deal(count - replayed, rng)), gathered(store, old))

    def live(self, state: BankState) -> Tensor:
        """Fresh ids and those of all entries."""
        return torch.cat([state.fresh.ids, *state.entries]).unique()
