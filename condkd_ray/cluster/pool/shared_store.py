"""Stores of samples that trials share: a trial's own view of what lies in the pool for several."""

from operator import attrgetter, itemgetter
from typing import Any

import torch

from condkd_ray.cluster.pool.actor import Taken
from condkd_ray.cluster.pool.store import AdoptingStore, PoolView
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.methods.memory.store import Arrays, MissingSamplesError, Store, from_arrays, to_arrays


class SharedStore(AdoptingStore):
    """One trial's view of rounds that several trials share: what it drops stays in the pool for the others.

    The pool has the teacher's logits of them all; the view gives them back, and counts their bytes, where its own trial
    reads them: so its numbers are those of a trial that shares nothing.
    """

    def take(self, round: int) -> Taken:
        """Ask for a round; what the pool says of it. Where it is made, its chunk is mapped then."""
        return self._view.ask("take", round, self._view.who, table=attrgetter("table"))

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Give a round to all, with its logits, as others may read them; as `take` then."""
        assert samples.asked, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        return self._view.ask("deliver", round, self._view.who, arrays, metrics, table=attrgetter("table"))

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start in self._dead_starts():
            self._table.remove(start)

    def _truncate(self, num_ids: int) -> None:
        """Rounds that are made stay made."""
        self._adopt(num_ids)


class SweepStore(Store):
    """One trial's view of what all trials of a sweep have made, its own and, as they come, the others'.

    Ids are the trial's own, in the order in which it has seen the chunks. Logits as in `SharedStore`.
    """

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, who: str, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(codec, num_classes, device)
        self._chunks: dict[int, Encoded] = {}
        self._places: dict[int, int] = {}
        self._queue: list[int] = []
        self._view = PoolView(pool, key, who, self._mapped, self._chunks.pop)

    def contribute(self, round: int, samples: Samples) -> int:
        """Give a round to all, with its logits. The number of chunks to be taken over now, its own at the end."""
        assert samples.asked, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        answer = self._view.ask("contribute", self._view.who, round, arrays, table=itemgetter(0))
        self._queue = list(answer[1])
        return len(self._queue)

    def look(self) -> Samples:
        """The chunk that is the next to be taken over; `append` does so, and sends nothing."""
        return self.codec.decode(self._chunks[self._queue[0]]).to(self.device)

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start, _ in self._dead():
            self._table.remove(start)

    def _append(self, start: int, samples: Samples) -> None:
        self._enter(self._queue.pop(0))

    def _truncate(self, num_ids: int) -> None:
        """Take over what the trial had seen at a checkpoint after `num_ids` samples; later chunks stay in the pool.

        Raises `MissingSamplesError` where the pool has lost some of it.
        """
        import ray

        view = self._view
        for start in ray.get(view.pool.seen.remote(view.key, view.who, 2**31)) if num_ids else []:
            if self.num_ids >= num_ids:
                break
            if start not in self._chunks:
                raise MissingSamplesError(f"a checkpoint after {num_ids} samples needs a chunk that is gone")
            self._enter(start)

    def _enter(self, pool_start: int) -> None:
        start, chunk = self.num_ids, self._chunks[pool_start]
        self._places[pool_start] = start
        self._table.put(start, chunk)
        self._ids.cover(start, chunk.classes)

    def _mapped(self, start: int, arrays: Arrays) -> None:
        chunk = self._chunks[start] = self._returned(from_arrays(arrays))
        if start in self._places and self._ids.any_live(self._places[start], len(chunk)):
            self._table.put(self._places[start], chunk)
