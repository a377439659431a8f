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
from condkd_ray.core.chunk_files import Arrays, read_chunk
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.store import Store, from_arrays, to_arrays


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
        self._drop: dict[int, int] = {}
        self._sealed = 0
        self._call("table", trial=self._reader)

    def _wanted(self, start: int, size: int) -> bool:
        """Return whether the trial needs a chunk of so many samples, whose first id in the pool is `start`."""
        return True

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

        The call is repeated while the pool is being restarted, and after copies of chunks were lost. `file`: writes the
        file that the call is about, before each attempt, and returns the arguments that describe it. `table`: function
        that returns the chunk table in a reply.
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

    def _mark_dropped(self, spans: Iterable[tuple[int, int]], sealed: int) -> None:
        """Unmap chunks, and record that samples with ids below `sealed` are covered by a checkpoint.

        `spans`: (first id, number of samples). For a key that belongs to this trial alone. `_call_and_drop` passes both
        to the pool, which removes the chunks.
        """
        for start, size in spans:
            self._unmap(start)
            self._drop[start] = size
        self._sealed = sealed

    def _call_and_drop(self, method: str, *args: Any, **options: Any) -> None:
        """Call the pool as `_call` does, and pass the chunks and the id recorded by `_mark_dropped`."""
        self._call(method, *args, drop=self._drop, sealed=self._sealed, **options)
        self._drop = {}

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._unmapped(start)

    def _map(self, table: Table) -> None:
        changed = {
            start: placed
            for start, placed in table.changed.items()
            if self._placed.get(start) != placed and self._wanted(start, placed.size)
        }
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
        made of it; the pool has then been told to put the object again. Raises `OSError` if a file cannot be read.
        """
        refs = {start: one.source for start, one in chunks.items() if not isinstance(one.source, Location)}
        copies = dict(zip(refs, _copies(list(refs.values())), strict=True))
        lost = {start: refs[start] for start, copy in copies.items() if copy is None}
        if lost:
            ray.get(self._pool.reload.remote(self._key, lost, Caller(self._node, self.shared)))
            raise RetryError(f"copies of {len(lost)} chunks of {self._key} are lost")
        for copy in copies.values():
            if isinstance(copy, str):
                raise OSError(copy)
        return [read_chunk(one.source) if start not in refs else copies[start] for start, one in chunks.items()]


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
        self._mark_dropped(self._dead(), self.num_ids)

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        self._own = {start: self._returned(encoded)}
        arrays = to_arrays(encoded)
        try:
            self._call_and_drop("append", start, file=lambda: {"written": write(self._folder, start, arrays)})
        finally:
            self._own = {}

    def _truncate(self, num_ids: int) -> None:
        # Also if no later chunk is known here: a process that was killed may have left a file.
        self._call("truncate", num_ids)
        self._sealed = num_ids

    def _wanted(self, start: int, size: int) -> bool:
        # A process that should not run any more may have added a chunk after the round that is being stored.
        return not self._own or start <= next(iter(self._own))

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

    def _dead_spans(self) -> list[tuple[int, int]]:
        """Return (first id, size) of chunks without live samples that are wholly below `num_ids`."""
        return [(start, count) for start, count in self._dead() if start + count <= self.num_ids]

    def _wanted(self, start: int, size: int) -> bool:
        return start + size > self.num_ids or self._ids.any_live(start, size)

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self.table.put(start, chunk)

    def _unmapped(self, start: int) -> None:
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
        self._mark_dropped(self._dead_spans(), self.num_ids)

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
        for start, _ in self._dead_spans():
            self._unmap(start)

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


def _copies(refs: list[Any]) -> list[Any]:
    """Return the arrays of copies in object stores; None for each copy that is lost."""
    try:
        return ray.get(refs)
    except RayError as error:
        if not is_lost(error):
            raise
    found = list[Any]()
    for ref in refs:
        try:
            found.append(ray.get(ref))
        except RayError as error:
            if not is_lost(error):
                raise
            found.append(None)
    return found
