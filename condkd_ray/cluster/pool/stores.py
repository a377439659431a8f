"""Stores whose chunks are in the pool. The process maps the chunks read-only and draws without remote calls."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, ClassVar

import ray
import torch
from ray.exceptions import RayError

from condkd_ray.cluster.actors import RetryError, call_actor, retry_until_restarted
from condkd_ray.cluster.lost import is_lost
from condkd_ray.cluster.pool.actor import Taken
from condkd_ray.cluster.pool.chunks import Caller, Placed, Table, write, write_unnamed
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.store import Arrays, Store, from_arrays, read_chunk, to_arrays


def own_node() -> str:
    """Return the id of the node on which this process runs."""
    return ray.get_runtime_context().get_node_id()


class PooledStore(Store):
    """A store whose chunks are in the pool under one key, and are mapped into this process.

    `pool`: handle of the actor. `reader`: key of the trial that reads the chunks, if it differs from their `key`.
    `device_limit`: bytes of samples held on a GPU; None: the default.
    """

    shared: ClassVar[bool] = False
    """Whether several trials read the key."""

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
        self._folder: Location = call_actor(pool.folder) / key
        self._node = own_node()
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
        self,
        method: str,
        *args: Any,
        file: Callable[[], dict[str, Any]] = dict,
        table: Callable[[Any], Table] = lambda answer: answer,
        **options: Any,
    ) -> Any:
        """Call a method of the pool on the key, map the changes of the key's chunks, and return the reply.

        `file`: writes the file that the call is about, before each attempt, and returns the arguments that describe it.
        `table`: function that returns the chunk table in a reply. If the pool was restarted in the meantime, it has put
        the files into new objects; the call is then repeated.
        """

        def attempt() -> Any:
            described = file()
            caller = Caller(self._node, self.shared, self._version)
            self._version = ""
            call = getattr(self._pool, method)
            answer = ray.get(call.remote(self._key, *args, **described, caller=caller, **options))
            changes = table(answer)
            self._map(changes)
            self._version = changes.version
            return answer

        return retry_until_restarted(attempt)

    def _mark_dropped(self, starts: Iterable[int], sealed: int) -> None:
        """Unmap chunks by first id, and record that samples with ids below `sealed` are covered by a checkpoint.

        For a key that belongs to this trial alone. `_call_and_drop` passes both to the pool, which removes the chunks.
        """
        for start in starts:
            self._unmap(start)
            self._drop.append(start)
        self._sealed = sealed

    def _call_and_drop(self, method: str, *args: Any, **options: Any) -> None:
        """Call the pool as `_call` does, and pass the chunks and the id recorded by `_mark_dropped`."""
        self._call(method, *args, drop=self._drop, sealed=self._sealed, **options)
        self._drop = []

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._unmapped(start)

    def _map(self, table: Table) -> None:
        changed = {start: placed for start, placed in table.changed.items() if self._placed.get(start) != placed}
        gone = set(self._placed) - set(table.changed) if table.whole else set(self._placed).intersection(table.removed)
        arrays = self._fetched(changed)
        for start in gone:
            self._unmap(start)
        for (start, placed), found in zip(changed.items(), arrays, strict=True):
            self._placed[start] = placed
            self._mapped(start, self._returned(from_arrays(found)))

    def _fetched(self, chunks: dict[int, Placed]) -> list[Arrays]:
        """Return the arrays of chunks, mapped from the object store or from their files.

        Raises `RetryError` if an object is lost, as with its node, or if the file was replaced before an object was
        made of it; the pool has then been told to put the object again.
        """
        refs = {start: one.source for start, one in chunks.items() if not isinstance(one.source, Location)}
        try:
            copies = dict(zip(refs, ray.get(list(refs.values())), strict=True))
        except (RayError, FileNotFoundError) as error:
            if not (is_lost(error) or isinstance(error, FileNotFoundError)):
                raise
            lost = {start: ref for start, ref in refs.items() if _is_lost(ref)}
            call_actor(self._pool.reload, self._key, lost, Caller(self._node, self.shared))
            raise RetryError from error
        return [copies[start] if start in copies else read_chunk(one.source) for start, one in chunks.items()]


class PoolStore(PooledStore):
    """The store of one trial, the only writer of its key. See `Store` for the methods.

    A round costs one remote call, that of `append`. The reply also contains the changes in the pool.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        # The round that is being stored, by first id: on a GPU it need not be copied back from the pool.
        self._own: dict[int, Encoded] = {}
        super().__init__(*place, **options)

    def commit(self) -> None:
        """Unmap chunks without live samples. The pool removes them with the next call of a round."""
        self._mark_dropped([start for start, _ in self._dead()], self.num_ids)

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        self._own = {start: self._returned(encoded)}
        arrays = to_arrays(encoded)
        try:
            self._call_and_drop("append", start, file=lambda: {"written": write(self._folder, start, arrays)})
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

    shared = True

    def take(self, round: int) -> Taken:
        """Request a round (from 0) and return the pool's reply. If the round exists, its chunk is then mapped."""
        return self._call("take", round, self._reader, table=attrgetter("table"))

    def deliver(self, round: int, samples: Samples, metrics: Metrics) -> Taken:
        """Add a round, with logits, to the shared ones; return the pool's reply as `take` does."""
        return self._send("deliver", round, samples, metrics=metrics)

    def _send(self, method: str, round: int, samples: Samples, **more: Any) -> Any:
        """Write a round to a file and call a method of the pool that adds it to the shared ones."""
        assert samples.has_logits or samples.dense, "shared samples come with logits"
        arrays = to_arrays(self.codec.encode(samples))
        parts = {"file": lambda: write_unnamed(self._folder, arrays), "table": attrgetter("table")}
        return self._call(method, round, self._reader, **parts, **more)

    def commit(self) -> None:
        """Unmap chunks without live samples."""
        for start in self._dead_starts():
            self.table.remove(start)

    def _truncate(self, num_ids: int) -> None:
        """Take over the ids below `num_ids`; the pool keeps later rounds, because they are shared."""
        self._adopt(num_ids)


class SweepStore(SharedStore):
    """A trial's view of the samples that all trials of a sweep make; see `SharedStore`.

    A trial takes over all rounds in the order of their ids. After a restart it may therefore have taken over only some
    of the samples that were there when it last called the pool.
    """

    def contribute(self, round: int, samples: Samples) -> list[int]:
        """Add a round, with logits, for all trials.

        Returns the numbers of samples of the rounds to take over now, one after the other: those of other trials since
        the last call, then the own one.
        """
        return self._send("contribute", round, samples).sizes


def _is_lost(ref: Any) -> bool:
    """Return whether an object cannot be got. Blocks until it is there or lost."""
    try:
        ray.wait([ref])
        ray.get(ref)
    except (RayError, FileNotFoundError):
        return True
    return False
