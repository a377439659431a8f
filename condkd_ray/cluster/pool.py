"""The shared pool: one actor that owns all chunks of a sweep, and the store through which a trial sees its own.

Arrays come by value. The actor writes each chunk's file first and then puts the copy that others map into the object
store: the file is the truth, the object a cache. Trials own nothing, so nothing is lost with them; a pool that was
restarted maps its files again.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from condkd_ray.memory.chunks import (
    Arrays,
    chunk_path,
    chunk_range,
    from_arrays,
    joinable,
    read_chunk,
    stored_chunks,
    to_arrays,
    write_chunk,
)
from condkd_ray.memory.store import TableStore
from condkd_ray.samples import Codec, Encoded

PATIENCE_SECONDS = 120.0
"""How long a trial goes on asking for a pool that is being restarted."""


class Placed(NamedTuple):
    """A chunk in the object store: its reference and its number of samples."""

    ref: Any
    size: int


Table = tuple[str, dict[int, Placed] | None]
"""A version, and all chunks of a key by first id; None where the asker has that version."""


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method may be called twice without harm."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._keys: dict[str, dict[int, Placed]] = {}
        self._changes: dict[str, int] = {}
        # A restarted pool counts anew and has put every object anew: its versions must equal none of before.
        self._epoch = secrets.token_hex(8)

    def append(
        self, key: str, start: int, arrays: Arrays, *, have: str = "", drop: Sequence[int] = (), sealed: int = 0
    ) -> Table:
        """Keep the chunk whose first id is `start`, in place of the one there.

        `drop`: first ids of chunks that may go. `sealed`: ids below it are in a checkpoint; only chunks of such are
        joined, as others may have to go again.
        """
        self.drop_chunks(key, drop)
        self._place(key, start, arrays)
        self._compact(key, sealed)
        return self.table(key, have)

    def table(self, key: str, have: str = "") -> Table:
        """Where the chunks of `key` are."""
        chunks = self._open(key)
        version = f"{self._epoch}/{self._changes[key]}"
        return version, None if version == have else chunks

    def drop_chunks(self, key: str, starts: Sequence[int]) -> None:
        """Remove chunks by first id; those already gone are passed over."""
        chunks = self._open(key)
        for start in starts:
            if start in chunks:
                self._remove(key, start)

    def truncate(self, key: str, num_ids: int, have: str = "") -> Table:
        """Remove all ids from `num_ids` on."""
        import ray

        for start, placed in list(self._open(key).items()):
            if start >= num_ids:
                self._remove(key, start)
            elif start + placed.size > num_ids:
                images, labels, logits = (array[: num_ids - start] for array in ray.get(placed.ref))
                self._place(key, start, (images, labels, logits))
        return self.table(key, have)

    def forget(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._keys.pop(key, None)
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def stats(self) -> dict[str, int]:
        """Keys in use, their chunks and samples."""
        placed = [entry for chunks in self._keys.values() for entry in chunks.values()]
        return {"keys": len(self._keys), "chunks": len(placed), "samples": sum(entry.size for entry in placed)}

    def _open(self, key: str) -> dict[int, Placed]:
        """The chunks of `key`; at first use those whose files are there."""
        import ray

        if key not in self._keys:
            self._changes[key] = self._changes.get(key, 0) + 1
            paths = stored_chunks(self._folder / key)
            # What a crash has left: parts of a joined chunk, files half written.
            for leftover in set((self._folder / key).glob("*")) - set(paths):
                leftover.unlink()
            ranges = {chunk_range(path): path for path in paths}
            self._keys[key] = {
                start: Placed(ray.put(read_chunk(path)), stop - start) for (start, stop), path in ranges.items()
            }
        return self._keys[key]

    def _place(self, key: str, start: int, arrays: Arrays) -> None:
        import ray

        old, count = self._open(key).get(start), len(arrays[1])
        write_chunk(chunk_path(self._folder / key, start, start + count), arrays)
        self._keys[key][start] = Placed(ray.put(arrays), count)
        self._keys[key] = dict(sorted(self._keys[key].items()))
        if old is not None and old.size != count:
            chunk_path(self._folder / key, start, start + old.size).unlink(missing_ok=True)
        self._changes[key] += 1

    def _remove(self, key: str, start: int) -> None:
        placed = self._keys[key].pop(start)
        chunk_path(self._folder / key, start, start + placed.size).unlink(missing_ok=True)
        self._changes[key] += 1

    def _compact(self, key: str, sealed: int) -> None:
        import ray

        chunks = self._keys[key]
        spans = [(start, placed.size) for start, placed in chunks.items() if start + placed.size <= sealed]
        for run in joinable(spans):
            parts = ray.get([chunks[start].ref for start in run])
            images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            # The joined file comes first: after a crash in between, it counts and its parts do not.
            self._place(key, run[0], (images, labels, logits))
            for start in run[1:]:
                self._remove(key, start)


def make_pool(folder: Path) -> Any:
    """The pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    To be called by the driver: made inside a trial it would die with that trial's resources.
    """
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
    return ray.remote(**options)(SyntheticPool).remote(str(folder.resolve()))


class PoolStore(TableStore):
    """A store whose chunks lie in a pool, under `key`: mapped read-only, drawn from here. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool; a draw none.
    """

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, device)
        self._pool, self._key = pool, key
        self._refs: dict[int, Any] = {}
        self._version = ""
        self._sealed = 0
        self._to_drop: list[int] = []
        self._ask(lambda have: pool.table.remote(key, have))

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

    def _ask(self, call: Callable[[str], Any]) -> None:
        """Call the pool, given the version we have, and map what it answers.

        A pool that died in between comes back with other objects over the same files: it is asked anew.
        """
        import ray
        from ray.exceptions import ActorUnavailableError, ObjectLostError

        deadline = time.monotonic() + PATIENCE_SECONDS
        have = self._version
        while True:
            try:
                version, chunks = ray.get(call(have))
                if chunks is not None:
                    self._map(chunks)
            except (ObjectLostError, ActorUnavailableError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                have = ""
            else:
                self._version = version
                return

    def _map(self, chunks: dict[int, Placed]) -> None:
        import ray

        changed = [start for start, placed in chunks.items() if self._refs.get(start) != placed.ref]
        views = ray.get([chunks[start].ref for start in changed])
        for start in set(self._refs) - set(chunks):
            self._unmap(start)
        for start, arrays in zip(changed, views, strict=True):
            chunk = from_arrays(arrays)
            self._table.put(start, chunk)
            self._refs[start] = chunks[start].ref
            self._ledger.cover(start, chunk.classes)

    def _unmap(self, start: int) -> None:
        self._table.remove(start)
        del self._refs[start]
