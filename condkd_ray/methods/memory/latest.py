"""Only the round just made, dealt out in disjoint batches: no replay at all."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from condkd_ray.core.method import Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.memory.memory import Deck, Draw, ReplayMemory, gathered
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Latest(ReplayMemory[Deck]):
    """What adversarial hosts (DAFL) use: each student step gets fresh images while they last."""

    reads_logits = False
    name: Literal["latest"] = "latest"

    def init(self, teacher: Teacher, rng: Streams) -> Deck:
        """Empty."""
        return Deck()

    def add(self, state: Deck, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams) -> Metrics:
        """The new round replaces the old."""
        store.drop(state.ids)
        fresh = Deck(store.append(samples))
        state.ids, state.order, state.cursor = fresh.ids, fresh.order, fresh.cursor
        return {}

    def draw(self, state: Deck, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """The next disjoint hand."""
        return gathered(store, state.deal(count, rng))

    def live(self, state: Deck) -> Tensor:
        """This round's ids."""
        return state.ids
