"""Chunks of a sweep: files, which are the truth, and copies in the object store, as many as the limit allows."""

from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np

from condkd_ray.core.storage import Location, files, remove
from condkd_ray.methods.memory.store import (
    Arrays,
    chunk_path,
    chunk_range,
    duplicate,
    joinable,
    read_chunk,
    stored_chunks,
    write_chunk,
)


class Placed(NamedTuple):
    """Where a chunk can be mapped, and its numbers of samples and bytes.

    `source`: the reference of its copy in the object store; or its file, where that is all there is.
    """

    source: Any
    size: int
    num_bytes: int


class ChunkCache:
    """Chunks by key and first id, under `folder`. To be used within an actor, which then owns the objects.

    `limit`: bytes of copies in the object store. Beyond it the oldest copies go, and their files are mapped instead:
    so nothing is lost and nothing waits, but draws then come from disk or the system's cache of it.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._keys: dict[str, dict[int, Placed]] = {}
        self._copies: dict[tuple[str, int], int] = {}
        self.changes: dict[str, int] = {}
        """How often the chunks of a key have changed."""
        self.shed = 0
        """Bytes of copies given up so far for the limit."""

    def open(self, key: str) -> dict[int, Placed]:
        """The chunks of `key` by first id, in order; at first use those whose files are there."""
        if key not in self._keys:
            self.changes[key] = self.changes.get(key, 0) + 1
            paths = stored_chunks(self.folder / key)
            # What a crash has left: parts of a joined chunk, files half written.
            for leftover in files(self.folder / key):
                if fnmatch(leftover.name, "*.arrow*") and leftover not in paths:
                    leftover.unlink()
            self._keys[key] = {}
            for path in paths:
                start, stop = chunk_range(path)
                self._cache(key, start, read_chunk(path), stop - start)
                self._shed()
        return self._keys[key]

    def place(self, key: str, start: int, arrays: Arrays) -> None:
        """Keep the chunk whose first id is `start`, in place of the one there."""
        old, size = self.open(key).get(start), len(arrays[1])
        write_chunk(chunk_path(self.folder / key, start, start + size), arrays)
        self._cache(key, start, arrays, size)
        self._keys[key] = dict(sorted(self._keys[key].items()))
        if old is not None and old.size != size:
            chunk_path(self.folder / key, start, start + old.size).unlink(missing_ok=True)
        self.changes[key] += 1
        self._shed()

    def remove(self, key: str, start: int) -> None:
        """Delete a chunk."""
        placed = self.open(key).pop(start)
        self._copies.pop((key, start), None)
        chunk_path(self.folder / key, start, start + placed.size).unlink(missing_ok=True)
        self.changes[key] += 1

    def truncate(self, key: str, num_ids: int) -> None:
        """Remove all ids from `num_ids` on."""
        for start, placed in list(self.open(key).items()):
            if start >= num_ids:
                self.remove(key, start)
            elif start + placed.size > num_ids:
                images, labels, logits = (array[: num_ids - start] for array in self.read(key, start))
                self.place(key, start, (images, labels, logits))

    def join(self, key: str, sealed: int) -> None:
        """Join small neighbours whose ids are all below `sealed`."""
        spans = [(start, placed.size) for start, placed in self.open(key).items() if start + placed.size <= sealed]
        for run in joinable(spans):
            parts = [self.read(key, start) for start in run]
            # Where only some have logits, a trial went on that reads none, after a version that stored them always.
            width = min(logits.shape[1] for _, _, logits in parts)
            parts = [(images, labels, logits[:, :width]) for images, labels, logits in parts]
            images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            # The joined file comes first: after a crash in between, it counts and its parts do not.
            self.place(key, run[0], (images, labels, logits))
            for start in run[1:]:
                self.remove(key, start)

    def copy(self, key: str, source: str) -> None:
        """Give `key` the chunks of `source`, in place of any it has."""
        self.forget(key)
        for path in stored_chunks(self.folder / source):
            duplicate(path, self.folder / key / path.name)
        self.open(key)

    def forget(self, key: str) -> None:
        """Free all copies of `key` and delete its files."""
        for start in self._keys.pop(key, {}):
            self._copies.pop((key, start), None)
        remove(self.folder / key)

    def read(self, key: str, start: int) -> Arrays:
        """A chunk's arrays, from its file."""
        placed = self._keys[key][start]
        return read_chunk(chunk_path(self.folder / key, start, start + placed.size))

    def sizes(self, key: str) -> dict[str, int]:
        """Chunks, samples and bytes of `key`, and the bytes that lie on disk alone."""
        chunks = self._keys.get(key, {}).values()
        return {
            "chunks": len(chunks),
            "samples": sum(placed.size for placed in chunks),
            "bytes": sum(placed.num_bytes for placed in chunks),
            "spilled_bytes": sum(placed.num_bytes for placed in chunks if isinstance(placed.source, Location)),
        }

    @property
    def keys(self) -> list[str]:
        """Those in use."""
        return list(self._keys)

    def _cache(self, key: str, start: int, arrays: Arrays, size: int) -> None:
        import ray

        num_bytes = sum(array.nbytes for array in arrays)
        self._keys[key][start] = Placed(ray.put(arrays), size, num_bytes)
        # The newest at the end.
        self._copies.pop((key, start), None)
        self._copies[key, start] = num_bytes

    def _shed(self) -> None:
        """Give up the oldest copies until the rest is within the limit."""
        total = sum(self._copies.values())
        while total > self.limit:
            key, start = next(iter(self._copies))
            given_up = self._copies.pop((key, start))
            total, self.shed = total - given_up, self.shed + given_up
            placed = self._keys[key][start]
            path = chunk_path(self.folder / key, start, start + placed.size)
            self._keys[key][start] = placed._replace(source=path)
            self.changes[key] += 1
