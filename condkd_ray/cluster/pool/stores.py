"""Stores whose chunks are in the pool. The process maps the chunks read-only and draws without remote calls."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from typing import Any

import ray
import torch

from condkd_ray.cluster.actors import call_actor, retry_until_restarted
from condkd_ray.cluster.pool.actor import Placed, Table, Taken
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.chunk_table import moved
from condkd_ray.methods.memory.store import MissingSamplesError, Store, from_arrays, read_chunk, to_arrays


class PooledStore(Store):
    """A store whose chunks are in the pool under one key, and are mapped into this process.

    `pool`: handle of the actor. `reader`: key of the trial that reads the chunks, if it differs from their `key`.
    `device_limit`: bytes of samples held on a GPU; None: the default.
    """

    def __init__(
        self,
        codec: Codec,
        num_classes: int,
        pool: Any,
        key: str,
        device: str | torch.device = "cpu",
        *,
        reader: str = "",
        device_limit: int | None = None,
    ) -> None:
        super().__init__(codec, num_classes, device, device_limit=device_limit)
        self._pool, self._key, self._reader = pool, key, reader or key
        self._placed: dict[int, Placed] = {}
        self._version = ""
        self._drop: list[int] = []
        self._sealed = 0
        self._call("table", trial=self._reader)

    @abstractmethod
    def _mapped(self, start: int, chunk: Encoded) -> None:
        """Handle a new or changed chunk, whose first id in the pool is `start`."""

    @abstractmethod
    def _unmapped(self, start: int) -> None:
        """Handle the removal of the chunk whose first id in the pool is `start`."""

    def _call(
        self, method: str, *args: Any, table: Callable[[Any], Table] = lambda answer: answer, **options: Any
    ) -> Any:
        """Call a method of the pool on the key, map the changes of the key's chunks, and return the reply.

        `table`: function that returns the chunk table in a reply. If the pool was restarted in the meantime, it has put
        the files into new objects; the call is then repeated.
        """

        def call() -> Any:
            have, self._version = self._version, ""
            answer = ray.get(getattr(self._pool, method).remote(self._key, *args, have=have, **options))
            version, chunks = table(answer)
            if chunks is not None:
                self._map(chunks)
            self._version = version
            return answer

        return retry_until_restarted(call)

    def _mark_dropped(self, starts: Iterable[int], sealed: int) -> None:
        """Unmap chunks by first id, and record that samples with ids below `sealed` are covered by a checkpoint.

        For a key that belongs to this trial alone. `_call_and_drop` passes both to the pool, which removes the chunks.
        """
        for start in starts:
            self._unmap(start)
            self._drop.append(start)
        self._sealed = sealed

    def _call_and_drop(self, method: str, *args: Any) -> None:
        """Call the pool as `_call` does, and pass the chunks and the id recorded by `_mark_dropped`."""
        self._call(method, *args, drop=self._drop, sealed=self._sealed)
        self._drop = []

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._unmapped(start)

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = {start: placed for start, placed in chunks.items() if self._placed.get(start) != placed}
        copies = iter(ray.get([one.source for one in changed.values() if not isinstance(one.source, Location)]))
        arrays = [
            read_chunk(one.source) if isinstance(one.source, Location) else next(copies) for one in changed.values()
        ]
        for start in set(self._placed) - set(chunks):
            self._unmap(start)
        for (start, placed), found in zip(changed.items(), arrays, strict=True):
            self._placed[start] = placed
            self._mapped(start, self._returned(from_arrays(found)))


class PoolStore(PooledStore):
    """The store of one trial, the only writer of its key. See `Store` for the methods.

    A round costs one remote call, that of `append`. The reply also contains the changes in the pool.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        # The round that is being sent to the pool, by first id: on a GPU it need not be copied back from the pool.
        self._own: dict[int, Encoded] = {}
        super().__init__(*place, **options)

    def commit(self) -> None:
        """Unmap chunks without live samples. The pool removes them with the next call of a round."""
        self._mark_dropped([start for start, _ in self._dead()], self.num_ids)

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        self._own = {start: self._returned(encoded)}
        try:
            self._call_and_drop("append", start, to_arrays(encoded))
        finally:
            self._own = {}

    def _truncate(self, num_ids: int) -> None:
        if any(start + count > num_ids for start, count in self.table.spans()):
            self._call("truncate", num_ids)
        self._sealed = num_ids

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self.table.put(start, chunk, self._own.get(start))
        self._ids.cover(start, chunk.classes)

    def _unmapped(self, start: int) -> None:
        self.table.remove(start)


class AdoptingStore(PooledStore):
    """A trial's view of rounds that other processes make.

    Ids are those of the pool. A sample becomes live when the trial takes it over.
    """

    def peek(self, count: int) -> Samples:
        """Return the `count` samples after those that the trial has taken over.

        The next `append` takes them over and sends nothing.
        """
        return self.gather(torch.arange(self.num_ids, self.num_ids + count))

    def _append(self, start: int, samples: Samples) -> None:
        self._ids.cover(start, samples.classes)

    def _adopt(self, num_ids: int) -> None:
        """Take over all ids below `num_ids`, the number given by a checkpoint."""
        for start, count in self.table.spans():
            if start < num_ids:
                ids = torch.arange(start, min(start + count, num_ids))
                self._ids.cover(start, self.table.gather(ids).classes)

    def _dead_starts(self) -> list[int]:
        """Return the first ids of chunks without live samples that are wholly below `num_ids`."""
        return [start for start, count in self._dead() if start + count <= self.num_ids]

    def _mapped(self, start: int, chunk: Encoded) -> None:
        if start + len(chunk) > self.num_ids or self._ids.any_live(start, len(chunk)):
            self.table.put(start, chunk)

    def _unmapped(self, start: int) -> None:
        if start in dict(self.table.spans()):
            self.table.remove(start)


class FilledStore(AdoptingStore):
    """The store of a trial whose producers fill its key some rounds ahead. Chunks that it drops are deleted."""

    def refresh(self) -> None:
        """Map the chunks that have arrived in the pool. This is the only remote call of a round."""
        self._call_and_drop("tend")

    def clear_ahead(self) -> None:
        """Remove the samples that the trial has not taken over yet; they will be made again."""
        self._truncate(self.num_ids)

    def commit(self) -> None:
        """Unmap chunks without live samples, as `PoolStore.commit` does."""
        self._mark_dropped(self._dead_starts(), self.num_ids)

    def _truncate(self, num_ids: int) -> None:
        self._adopt(num_ids)
        self._call("truncate", num_ids)
        self._sealed = min(self._sealed, num_ids)


class SharedStore(AdoptingStore):
    """A trial's view of rounds that several trials share: chunks that it drops stay in the pool for the others.

    The pool stores every shared round with the teacher's logits; in segmentation only if all trials that share it read
    them. The view returns the logits, and counts their bytes, only if its own trial reads them, so that the trial's
    numbers are those of a trial that shares nothing.
    """

    def take(self, round: int) -> Taken:
        """Request a round (from 0) and return the pool's reply. If the round exists, its chunk is then mapped."""
        return self._call("take", round, self._reader, table=attrgetter("table"))

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Add a round, with logits, to the shared ones; return the pool's reply as `take` does."""
        assert samples.has_logits or samples.dense, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        return self._call("deliver", round, self._reader, arrays, metrics, table=attrgetter("table"))

    def commit(self) -> None:
        """Unmap chunks without live samples."""
        for start in self._dead_starts():
            self.table.remove(start)

    def _truncate(self, num_ids: int) -> None:
        """Take over the ids below `num_ids`; the pool keeps later rounds, because they are shared."""
        self._adopt(num_ids)


class SweepStore(PooledStore):
    """A trial's view of the samples that all trials of a sweep make.

    Ids are those of the trial, in the order in which it received the chunks. Logits are handled as in `SharedStore`.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._places: dict[int, int] = {}
        self._queue: list[int] = []
        super().__init__(*place, **options)

    def contribute(self, round: int, samples: Samples) -> int:
        """Add a round, with logits, for all trials; return the number of chunks to take over now, the own one last."""
        assert samples.has_logits or samples.dense, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        self._queue = list(self._call("contribute", self._reader, round, arrays, table=itemgetter(0))[1])
        return len(self._queue)

    def peek(self) -> Samples:
        """Return the samples of the next chunk to take over. The next `append` takes it over and sends nothing."""
        return self.codec.decode(moved(self._chunks[self._queue[0]], self.device))

    def commit(self) -> None:
        """Unmap chunks without live samples."""
        for start, _ in self._dead():
            self.table.remove(start)

    def _append(self, start: int, samples: Samples) -> None:
        self._enter(self._queue.pop(0))

    def _truncate(self, num_ids: int) -> None:
        """Take over the chunks that the trial had received by a checkpoint after `num_ids` samples.

        Later chunks stay in the pool. Raises `MissingSamplesError` if the pool has lost one of these chunks.
        """
        for start in call_actor(self._pool.received, self._key, self._reader, 2**31) if num_ids else []:
            if self.num_ids >= num_ids:
                break
            if start not in self._chunks:
                raise MissingSamplesError(f"a checkpoint after {num_ids} samples needs a chunk that is gone")
            self._enter(start)

    def _enter(self, pool_start: int) -> None:
        start, chunk = self.num_ids, self._chunks[pool_start]
        self._places[pool_start] = start
        self.table.put(start, chunk)
        self._ids.cover(start, chunk.classes)

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._chunks[start] = chunk
        if start in self._places and self._ids.any_live(self._places[start], len(chunk)):
            self.table.put(self._places[start], chunk)

    def _unmapped(self, start: int) -> None:
        del self._chunks[start]
