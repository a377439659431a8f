"""Stores whose chunks lie in the pool: mapped read-only, drawn from here. A draw makes no remote call."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError

from condkd_ray.cluster.lost import passes
from condkd_ray.cluster.pool import Placed, Table, Taken
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.chunk_table import moved
from condkd_ray.methods.memory.store import MissingSamplesError, Store, from_arrays, read_chunk, to_arrays


class Stopwatch:
    """Seconds that a trial has waited for Ray: its pool, its driver, the time since the last trial of this process.

    A process runs one trial at a time, so one watch is enough.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Counted for this trial so far."""
        self._idle_since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    @contextmanager
    def trial(self) -> Iterator[None]:
        """A trial: what was counted before is forgotten, and the time since the last trial of this process is counted.

        Nothing for the first one: its process was just started.
        """
        now = time.perf_counter()
        self.seconds = 0.0 if self._idle_since is None else now - self._idle_since
        try:
            yield
        finally:
            self._idle_since = time.perf_counter()


WATCH = Stopwatch()
"""That of this process."""
T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""How long a trial goes on asking for a pool that is being restarted."""


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, which calls the pool; again and again for a while, should that just be restarted."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with WATCH.running():
                return ask()
        except (RayError, FileNotFoundError) as error:
            # A file may just have been given up for another one.
            if time.monotonic() > deadline or not (passes(error) or isinstance(error, FileNotFoundError)):
                raise
            time.sleep(0.1)


def ask(method: Any, *args: Any) -> Any:
    """What a method of the pool, or of another actor that is started again, returns; see `patiently`."""
    return patiently(lambda: ray.get(method.remote(*args)))


class PooledStore(Store):
    """A store whose chunks lie in the pool under one key, mapped into this process as the pool last said where.

    `who` reads them: the key of a trial, where that is another than the key of the chunks.
    """

    def __init__(
        self,
        codec: Codec,
        num_classes: int,
        pool: Any,
        key: str,
        device: str | torch.device = "cpu",
        *,
        who: str = "",
        device_limit: int | None = None,
    ) -> None:
        super().__init__(codec, num_classes, device, device_limit=device_limit)
        self._pool, self._key, self._who = pool, key, who or key
        self._placed: dict[int, Placed] = {}
        self._version = ""
        self._drop: list[int] = []
        self._sealed = 0
        self._ask("table", who=self._who)

    @abstractmethod
    def _mapped(self, start: int, chunk: Encoded) -> None:
        """The chunk whose first id is `start` in the pool is new or has changed."""

    @abstractmethod
    def _unmapped(self, start: int) -> None:
        """The chunk whose first id is `start` in the pool is gone."""

    def _ask(
        self, method: str, *args: Any, table: Callable[[Any], Table] = lambda answer: answer, **options: Any
    ) -> Any:
        """Call a method of the pool on the key, map what has changed by the `table` in its answer, and return that.

        A pool that died in between comes back with other objects over the same files: it is asked anew.
        """

        def ask() -> Any:
            have, self._version = self._version, ""
            answer = ray.get(getattr(self._pool, method).remote(self._key, *args, have=have, **options))
            version, chunks = table(answer)
            if chunks is not None:
                self._map(chunks)
            self._version = version
            return answer

        return patiently(ask)

    def _tidy(self, starts: Iterable[int], sealed: int) -> None:
        """Of a key that belongs to this trial, let go of chunks by first id; ids below `sealed` are in a checkpoint.

        The pool hears of both by `_ask_tidily`: it may remove these chunks.
        """
        for start in starts:
            self._forget(start)
            self._drop.append(start)
        self._sealed = sealed

    def _ask_tidily(self, method: str, *args: Any) -> None:
        """As `_ask`, of a key that belongs to this trial."""
        self._ask(method, *args, drop=self._drop, sealed=self._sealed)
        self._drop = []

    def _forget(self, start: int) -> None:
        del self._placed[start]
        self._unmapped(start)

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = {start: placed for start, placed in chunks.items() if self._placed.get(start) != placed}
        copies = iter(ray.get([one.source for one in changed.values() if not isinstance(one.source, Location)]))
        arrays = [
            read_chunk(one.source) if isinstance(one.source, Location) else next(copies) for one in changed.values()
        ]
        for start in set(self._placed) - set(chunks):
            self._forget(start)
        for (start, placed), found in zip(changed.items(), arrays, strict=True):
            self._placed[start] = placed
            self._mapped(start, self._returned(from_arrays(found)))


class PoolStore(PooledStore):
    """The store of one trial, which alone writes to its key. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        # By first id, a round while it is on its way to the pool: on a GPU it need not be sent back there.
        self._own: dict[int, Encoded] = {}
        super().__init__(*place, **options)

    def commit(self) -> None:
        """Unmap chunks of which nothing lives. The pool hears of it with the next call of a round."""
        self._tidy([start for start, _ in self._dead()], self.num_ids)

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        self._own = {start: self._returned(encoded)}
        try:
            self._ask_tidily("append", start, to_arrays(encoded))
        finally:
            self._own = {}

    def _truncate(self, num_ids: int) -> None:
        if any(start + count > num_ids for start, count in self._table.spans()):
            self._ask("truncate", num_ids)
        self._sealed = num_ids

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._table.put(start, chunk, self._own.get(start))
        self._ids.cover(start, chunk.classes)

    def _unmapped(self, start: int) -> None:
        self._table.remove(start)


class AdoptingStore(PooledStore):
    """A trial's view of rounds that others put into the pool. Ids are the pool's; they live once the trial has them."""

    def look(self, count: int) -> Samples:
        """The `count` samples behind the last id given out; `append` takes them over, and sends nothing."""
        return self.gather(torch.arange(self.num_ids, self.num_ids + count))

    def _append(self, start: int, samples: Samples) -> None:
        self._ids.cover(start, samples.classes)

    def _adopt(self, num_ids: int) -> None:
        """Take over all ids below `num_ids`, as a checkpoint says."""
        for start, count in self._table.spans():
            if start < num_ids:
                ids = torch.arange(start, min(start + count, num_ids))
                self._ids.cover(start, self._table.gather(ids).classes)

    def _dead_starts(self) -> list[int]:
        """First ids of chunks of which nothing lives, and nothing will."""
        return [start for start, count in self._dead() if start + count <= self.num_ids]

    def _mapped(self, start: int, chunk: Encoded) -> None:
        if start + len(chunk) > self.num_ids or self._ids.any_live(start, len(chunk)):
            self._table.put(start, chunk)

    def _unmapped(self, start: int) -> None:
        if start in dict(self._table.spans()):
            self._table.remove(start)


class FilledStore(AdoptingStore):
    """The store of a trial whose producers fill its key, some rounds ahead of it. What it drops goes."""

    def refresh(self) -> None:
        """See what has come. The one remote call of a round."""
        self._ask_tidily("tend")

    def clear_ahead(self) -> None:
        """Remove what the trial has not taken yet: it will be made again."""
        self._truncate(self.num_ids)

    def commit(self) -> None:
        """As of a `PoolStore`."""
        self._tidy(self._dead_starts(), self.num_ids)

    def _truncate(self, num_ids: int) -> None:
        self._adopt(num_ids)
        self._ask("truncate", num_ids)
        self._sealed = min(self._sealed, num_ids)


class SharedStore(AdoptingStore):
    """One trial's view of rounds that several trials share: what it drops stays in the pool for the others.

    The pool has the teacher's logits of them all; the view gives them back, and counts their bytes, where its own trial
    reads them: so its numbers are those of a trial that shares nothing.
    """

    def take(self, round: int) -> Taken:
        """Ask for a round; what the pool says of it. Where it is made, its chunk is mapped then."""
        return self._ask("take", round, self._who, table=attrgetter("table"))

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Give a round to all, with its logits, as others may read them; as `take` then."""
        assert samples.has_logits, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        return self._ask("deliver", round, self._who, arrays, metrics, table=attrgetter("table"))

    def commit(self) -> None:
        """Unmap chunks of which nothing lives any more."""
        for start in self._dead_starts():
            self._table.remove(start)

    def _truncate(self, num_ids: int) -> None:
        """Rounds that are made stay made."""
        self._adopt(num_ids)


class SweepStore(PooledStore):
    """One trial's view of what all trials of a sweep have made, its own and, as they come, the others'.

    Ids are the trial's own, in the order in which it has seen the chunks. Logits as in `SharedStore`.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._places: dict[int, int] = {}
        self._queue: list[int] = []
        super().__init__(*place, **options)

    def contribute(self, round: int, samples: Samples) -> int:
        """Give a round to all, with its logits. The number of chunks to be taken over now, its own at the end."""
        assert samples.has_logits, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        self._queue = list(self._ask("contribute", self._who, round, arrays, table=itemgetter(0))[1])
        return len(self._queue)

    def look(self) -> Samples:
        """The chunk that is the next to be taken over; `append` does so, and sends nothing."""
        return self.codec.decode(moved(self._chunks[self._queue[0]], self.device))

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
        for start in ask(self._pool.seen, self._key, self._who, 2**31) if num_ids else []:
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

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._chunks[start] = chunk
        if start in self._places and self._ids.any_live(self._places[start], len(chunk)):
            self._table.put(self._places[start], chunk)

    def _unmapped(self, start: int) -> None:
        del self._chunks[start]
