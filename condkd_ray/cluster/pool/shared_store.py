"""Stores of samples that trials share: a trial's own view of what lies in the pool for several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condkd_ray.cluster.pool.actor import Taken
from condkd_ray.cluster.pool.store import AdoptingStore, MappedStore
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.methods.memory.chunks import to_arrays
from condkd_ray.methods.memory.store import MissingSamplesError


class SharedStore(AdoptingStore):
    """One trial's view of rounds that several trials share: what it drops stays in the pool for the others.

    The pool has the teacher's logits of them all; the view gives them back, and counts their bytes, where its own trial
    reads them: so its numbers are those of a trial that shares nothing.
    """

    def take(self, round: int) -> Taken:
        """Ask for a round; what the pool says of it. Where it is made, its chunk is mapped then."""
        call = self._pool.take
        return self._ask(lambda have: call.remote(self._key, round, self._who, have), lambda taken: taken.table)

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Give a round to all, with its logits, as others may read them; as `take` then."""
        assert samples.asked, "shared samples come with logits"
        arrays, call = to_arrays(self.codec.encode(samples)), self._pool.deliver
        return self._ask(
            lambda have: call.remote(self._key, round, self._who, arrays, metrics, have), lambda taken: taken.table
        )

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start, _ in self._dead():
            self._table.remove(start)

    def _truncate(self, num_ids: int) -> None:
        """Rounds that are made stay made."""


class SweepStore(MappedStore):
    """One trial's view of what all trials of a sweep have made, its own and, as they come, the others'.

    Ids are the trial's own, in the order in which it has seen the chunks. Logits as in `SharedStore`.
    """

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, who: str, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(codec, num_classes, pool, key, device, who)
        self._chunks: dict[int, Encoded] = {}
        self._places: dict[int, int] = {}
        self._queue: list[int] = []
        self._ask(lambda have: pool.table.remote(key, have, who))

    def contribute(self, round: int, samples: Samples) -> int:
        """Give a round to all, with its logits. The number of chunks to be taken over now, its own at the end."""
        assert samples.asked, "shared samples come with logits"
        arrays, call = to_arrays(self.codec.encode(samples)), self._pool.contribute
        answer = self._ask(
            lambda have: call.remote(self._key, self._who, round, arrays, have), lambda answer: answer[0]
        )
        self._queue = list(answer[1])
        return len(self._queue)

    def look(self) -> Samples:
        """The chunk that is the next to be taken over."""
        return self.codec.decode(self._chunks[self._queue[0]]).to(self.device)

    def append(self, samples: Samples) -> Tensor:
        """Take over the chunk at which `look` has looked: nothing is sent. Their ids."""
        start = self.num_ids
        self._enter(self._queue.pop(0))
        return torch.arange(start, self.num_ids)

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start, _ in self._dead():
            self._table.remove(start)

    def restore(self, num_ids: int, live: Tensor) -> None:
        """See `Store`; raises `MissingSamplesError` where the pool has lost what this trial had seen."""
        import ray

        for start in ray.get(self._pool.seen.remote(self._key, self._who, 2**31)) if num_ids else []:
            if self.num_ids >= num_ids:
                break
            if start not in self._chunks:
                raise MissingSamplesError(f"a checkpoint after {num_ids} samples needs a chunk that is gone")
            self._enter(start)
        super().restore(num_ids, live)

    def _enter(self, pool_start: int) -> None:
        start, chunk = self.num_ids, self._chunks[pool_start]
        self._places[pool_start] = start
        self._table.put(start, chunk)
        self._ids.cover(start, chunk.classes)

    def _append(self, start: int, encoded: Encoded) -> None:
        raise AssertionError("a sweep's store is contributed to, round by round")

    def _truncate(self, num_ids: int) -> None:
        """What the others may have drawn stays."""

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._chunks[start] = chunk
        if start in self._places and self._ids.any_live(self._places[start], len(chunk)):
            self._table.put(self._places[start], chunk)

    def _unmap(self, start: int) -> None:
        del self._placed[start], self._chunks[start]
