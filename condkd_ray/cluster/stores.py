"""Stores whose chunks lie in the pool: mapped read-only, drawn from here. A draw makes no remote call."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condkd_ray.cluster.chunk_cache import Placed
from condkd_ray.cluster.pool import Table, Taken
from condkd_ray.memory.chunks import Arrays, from_arrays, read_chunk, to_arrays
from condkd_ray.memory.store import MissingSamplesError, TableStore
from condkd_ray.method import Metrics
from condkd_ray.samples import Codec, Encoded, Samples

PATIENCE_SECONDS = 120.0
"""How long a trial goes on asking for a pool that is being restarted."""


class MappedStore(TableStore):
    """What these stores share: they hear from the pool where the chunks of a key are, and map them."""

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu", who: str = ""
    ) -> None:
        super().__init__(codec, num_classes, device)
        self._pool, self._key, self._who = pool, key, who or key
        self._placed: dict[int, Placed] = {}
        self._version = ""

    def _ask(self, call: Callable[[str], Any], table: Callable[[Any], Table] = lambda answer: answer) -> Any:
        """Call the pool, given the version we have, map what it answers, and return that.

        A pool that died in between comes back with other objects over the same files: it is asked anew.
        """
        import ray
        from ray.exceptions import ActorUnavailableError, ObjectLostError

        deadline = time.monotonic() + PATIENCE_SECONDS
        have = self._version
        while True:
            try:
                answer = ray.get(call(have))
                version, chunks = table(answer)
                if chunks is not None:
                    self._map(chunks)
            except (ObjectLostError, ActorUnavailableError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                have = ""
            else:
                self._version = version
                return answer

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = [start for start, placed in chunks.items() if self._placed.get(start) != placed]
        views = _views([chunks[start] for start in changed])
        for start in set(self._placed) - set(chunks):
            self._unmap(start)
        for start, arrays in zip(changed, views, strict=True):
            self._placed[start] = chunks[start]
            self._mapped(start, from_arrays(arrays))

    @abstractmethod
    def _mapped(self, start: int, chunk: Encoded) -> None:
        """A chunk of the pool can be read."""

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._table.remove(start)


def _views(chunks: list[Placed]) -> list[Arrays]:
    import ray

    refs = [chunk.source for chunk in chunks if not isinstance(chunk.source, str)]
    copies = iter(ray.get(refs))
    return [read_chunk(Path(c.source)) if isinstance(c.source, str) else next(copies) for c in chunks]


class PoolStore(MappedStore):
    """The store of one trial, which alone writes to its key. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool.
    """

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, pool, key, device)
        self._sealed = 0
        self._to_drop: list[int] = []
        self._ask(lambda have: pool.table.remote(key, have, key))

    def _append(self, start: int, encoded: Encoded) -> None:
        arrays, drop, sealed = to_arrays(encoded), self._to_drop, self._sealed
        self._ask(lambda have: self._pool.append.remote(self._key, start, arrays, have=have, drop=drop, sealed=sealed))
        self._to_drop = []

    def commit(self) -> None:
        """Unmap chunks of which nothing lives. The pool hears of it with the next `append`."""
        for start, _ in self._dead():
            self._unmap(start)
            self._to_drop.append(start)
        self._sealed = self.num_ids

    def _truncate(self, num_ids: int) -> None:
        if any(start + len(chunk) > num_ids for start, chunk in self._table.items()):
            self._ask(lambda have: self._pool.truncate.remote(self._key, num_ids, have))
        self._sealed = num_ids

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._table.put(start, chunk)
        self._ledger.cover(start, chunk.classes)


class SharedStore(MappedStore):
    """One trial's view of rounds that several trials share. Ids are the pool's; they live once the trial has them.

    What the trial drops stays in the pool for the others.
    """

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, who: str, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(codec, num_classes, pool, key, device, who)
        self._ask(lambda have: pool.table.remote(key, have, who))

    def take(self, round: int) -> Taken:
        """Ask for a round; what the pool says of it. Where it is made, its chunk is mapped then."""
        call = self._pool.take
        return self._ask(lambda have: call.remote(self._key, round, self._who, have), lambda taken: taken.table)

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Give a round to all; as `take` then."""
        arrays, call = to_arrays(self.codec.encode(samples)), self._pool.deliver
        return self._ask(
            lambda have: call.remote(self._key, round, self._who, arrays, metrics, have), lambda taken: taken.table
        )

    def look(self, count: int) -> Samples:
        """The `count` samples behind the last id given out."""
        return self.codec.decode(self._table.gather(torch.arange(self.num_ids, self.num_ids + count))).to(self.device)

    def append(self, samples: Samples) -> Tensor:
        """Take over those at which `look` has looked: nothing is sent. Their ids."""
        start = self.num_ids
        self._ledger.cover(start, samples.logits.argmax(1))
        return torch.arange(start, self.num_ids)

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start, _ in self._dead():
            self._table.remove(start)

    def _append(self, start: int, encoded: Encoded) -> None:
        raise AssertionError("a shared store is delivered to, round by round")

    def _truncate(self, num_ids: int) -> None:
        """Rounds that are made stay made."""

    def restore(self, num_ids: int, live: Tensor) -> None:
        """See `Store`."""
        for start, chunk in self._table.items():
            if start < num_ids:
                self._ledger.cover(start, chunk[: num_ids - start].classes)
        super().restore(num_ids, live)

    def _dead(self) -> list[tuple[int, Encoded]]:
        return [(start, chunk) for start, chunk in super()._dead() if start + len(chunk) <= self.num_ids]

    def _mapped(self, start: int, chunk: Encoded) -> None:
        if start + len(chunk) > self.num_ids or self._ledger.any_live(start, len(chunk)):
            self._table.put(start, chunk)

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        if start in dict(self._table.items()):
            self._table.remove(start)


class SweepStore(MappedStore):
    """One trial's view of what all trials of a sweep have made, its own and, as they come, the others'.

    Ids are the trial's own, in the order in which it has seen the chunks.
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
        """Give a round to all. The number of chunks to be taken over now, the trial's own at the end."""
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
        self._ledger.cover(start, chunk.classes)

    def _append(self, start: int, encoded: Encoded) -> None:
        raise AssertionError("a sweep's store is contributed to, round by round")

    def _truncate(self, num_ids: int) -> None:
        """What the others may have drawn stays."""

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._chunks[start] = chunk
        if start in self._places and self._ledger.any_live(self._places[start], len(chunk)):
            self._table.put(self._places[start], chunk)

    def _unmap(self, start: int) -> None:
        del self._placed[start], self._chunks[start]
