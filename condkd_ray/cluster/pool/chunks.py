"""Chunks of samples by key and first id: their files, and their copies in the object stores of the cluster's nodes.

A trial writes a chunk's file itself. The process that holds a `ChunkCache` then asks the `ChunkLoader` of a node to put
a copy into that node's object store; it owns the copy, so the death of a trial loses none. No sample passes through
this process.
"""

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from condkd_ray.cluster.lost import in_words, is_lost
from condkd_ray.cluster.pool.loader import JOIN, ChunkLoader, num_bytes
from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import Location, files, move, remove
from condkd_ray.methods.memory.chunk_table import COMPACT, joinable
from condkd_ray.methods.memory.store import (
    Arrays,
    chunk_path,
    duplicate,
    read_chunk,
    read_stored,
    stored_chunks,
    write_chunk,
)

log = logging.getLogger(__name__)


class Written(NamedTuple):
    """Size of a chunk in a file, in samples and in bytes of samples."""

    size: int
    num_bytes: int


def write(folder: Location, start: int, arrays: Arrays) -> Written:
    """Write a chunk whose first id is `start` to its file in a key's folder."""
    written = Written(len(arrays[1]), num_bytes(arrays))
    write_chunk(chunk_path(folder, start, start + written.size), arrays)
    return written


def write_unnamed(folder: Location, arrays: Arrays) -> dict[str, Any]:
    """Write a chunk whose ids the pool decides, or which it may have already.

    The pool renames the file (`ChunkCache.take_file`), or deletes it. Returns the arguments `file`, the file's name in
    `folder`, and `written` of a call of the pool.
    """
    name = f".{secrets.token_hex(8)}.arrow.new"
    write_chunk(folder / name, arrays)
    return {"file": name, "written": Written(len(arrays[1]), num_bytes(arrays))}


class Placed(NamedTuple):
    """Location of a chunk, its `size` in samples, and its size in bytes of samples.

    `source`: object reference of the copy in an object store, or the path of the file if there is no copy.
    """

    source: Any
    size: int
    num_bytes: int


class Caller(NamedTuple):
    """What the pool has to know about a store that calls it."""

    node: str = ""
    """Id of the caller's node, on which copies are put; empty: the node of the pool."""
    shared: bool = False
    """Whether several trials read the key: its copies then count on every node, as any node may map them."""
    have: str = ""
    """Version of the key's chunk table that the caller has."""


HERE = Caller()
"""A caller on the pool's node that has no version, of a key of one trial."""


class Table(NamedTuple):
    """Changes of a key's chunks since the version that a caller had."""

    version: str
    changed: dict[int, Placed]
    """New and changed chunks by first id, in order of ids."""
    removed: list[int]
    """First ids of chunks that do not exist any more. The caller may not know some of them."""
    whole: bool
    """True if `changed` has all chunks: the caller had no version, or one of an earlier process."""


@dataclass
class _Join:
    """Chunks that are being joined: sizes by first id, and references of the results of `ChunkLoader.join`."""

    parts: dict[int, int]
    bytes_ref: Any
    arrays_ref: Any
    caller: Caller
    dropped: set[int] = field(default_factory=set)
    """Parts that the trial has dropped meanwhile. The joined chunk still has them."""

    @property
    def start(self) -> int:
        return next(iter(self.parts))

    @property
    def size(self) -> int:
        return sum(self.parts.values())


class _Key:
    """The chunks of a key. `chunks`: by first id, in order of ids."""

    def __init__(self) -> None:
        self.chunks: dict[int, Placed] = {}
        self.version = 0
        self._changes: dict[int, int] = {}
        """Version of the last change by first id of the chunk, the oldest change first."""
        self.join: _Join | None = None
        self.joined_to = 0
        """Id up to which chunks have been joined."""

    def put(self, start: int, placed: Placed) -> None:
        last = next(reversed(self.chunks), -1)
        self.chunks[start] = placed
        if start < last:
            self.chunks = dict(sorted(self.chunks.items()))
        self._note(start)

    def pop(self, start: int) -> Placed:
        self._note(start)
        return self.chunks.pop(start)

    def since(self, version: int) -> tuple[dict[int, Placed], list[int]]:
        """Return the chunks that changed after `version`, and the first ids of those removed after it."""
        starts = []
        for start in reversed(self._changes):
            if self._changes[start] <= version:
                break
            starts.append(start)
        starts.sort()
        there = {start: self.chunks[start] for start in starts if start in self.chunks}
        return there, [start for start in starts if start not in there]

    def open_spans(self) -> list[tuple[int, int]]:
        """Return (first id, size) of the chunks from `joined_to` on, in order."""
        spans = list[tuple[int, int]]()
        for start in reversed(self.chunks):
            if start < self.joined_to:
                break
            spans.append((start, self.chunks[start].size))
        return spans[::-1]

    def _note(self, start: int) -> None:
        self.version += 1
        self._changes.pop(start, None)
        self._changes[start] = self.version


class ChunkCache:
    """Chunks by key and first id, with their files under `folder`. Use it inside an actor, which then owns the copies.

    `limit`: bytes of copies on each node. Beyond this limit the oldest copies are freed, and trials map the files of
    these chunks instead: no sample is lost and no trial waits, but draws then read from disk or from the system's file
    cache. Copies of a key of one trial count on the node of that trial, copies of a shared key on every node.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._keys: dict[str, _Key] = {}
        self._copies: dict[tuple[str, int], tuple[str, int]] = {}
        """Node and bytes of each copy, by key and first id, the oldest first. The node is empty for shared keys."""
        self._on_node: dict[str, int] = {}
        """Bytes of the copies by node, as in `_copies`."""
        self._loaders: dict[str, Any] = {}
        self.shed = 0
        """Bytes of copies freed so far because of the limit."""

    @property
    def keys(self) -> list[str]:
        """Keys in use."""
        return list(self._keys)

    def open(self, key: str, caller: Caller) -> dict[int, Placed]:
        """Return the chunks of `key` by first id, in order. The first call for a key loads its files."""
        if key not in self._keys:
            self._keys[key] = _Key()
            for start, stop, arrays in self._stored(key):
                self._copy(key, start, Written(stop - start, num_bytes(arrays)), caller)
            self._shed()
        return self._keys[key].chunks

    def table(self, key: str, caller: Caller, epoch: str) -> Table:
        """Return the changes of `key` since the caller's version. `epoch`: name of this process in versions."""
        chunks, found = self.open(key, caller), self._keys[key]
        version = f"{epoch}/{found.version}"
        known_epoch, _, known = caller.have.partition("/")
        if known_epoch != epoch:
            return Table(version, chunks, [], True)
        changed, removed = found.since(int(known))
        return Table(version, changed, removed, False)

    def place(self, key: str, start: int, written: Written, caller: Caller) -> None:
        """Enter the chunk in a file whose first id is `start`; it replaces an existing chunk with the same first id."""
        old = self.open(key, caller).get(start)
        self._copy(key, start, written, caller)
        if old is not None and old.size != written.size:
            self._path(key, start, old.size).unlink(missing_ok=True)
        self._shed()

    def take_file(self, key: str, start: int, file: str, written: Written, caller: Caller) -> None:
        """Enter a chunk as `place` does, from a file that `write_unnamed` wrote."""
        move(self.folder / key / file, self._path(key, start, written.size))
        self.place(key, start, written, caller)

    def drop(self, key: str, starts: Sequence[int], caller: Caller) -> None:
        """Delete chunks by first id; unknown ids are ignored. Chunks that are being joined go with the joined chunk."""
        chunks, join = self.open(key, caller), self._keys[key].join
        for start in sorted(set(starts) & set(chunks)):
            if join is not None and start in join.parts:
                join.dropped.add(start)
            else:
                self._remove(key, start)

    def truncate(self, key: str, num_ids: int, caller: Caller) -> None:
        """Remove all samples with ids of `num_ids` or more."""
        chunks = self.open(key, caller)
        self._finish_join(key)
        for start, placed in list(chunks.items()):
            if start >= num_ids:
                self._remove(key, start)
            elif start + placed.size > num_ids:
                arrays = read_chunk(self._path(key, start, placed.size))
                images, labels, logits = (array[: num_ids - start] for array in arrays)
                self.place(key, start, write(self.folder / key, start, (images, labels, logits)), caller)
        self._keys[key].joined_to = min(self._keys[key].joined_to, num_ids)

    def join(self, key: str, sealed: int, caller: Caller) -> None:
        """Let small neighbouring chunks whose ids are all below `sealed` be joined, by the loader of the caller's node.

        The joined chunk replaces them at a later call, so no caller waits. One run of chunks of a key is joined at a
        time, and one of a node.
        """
        self.open(key, caller)
        found = self._keys[key]
        if found.join is not None and not ray.wait([found.join.bytes_ref], timeout=0)[0]:
            return
        self._finish_join(key)
        spans = [(start, size) for start, size in found.open_spans() if start + size <= sealed]
        run = next(iter(joinable(spans)), [])
        if run:
            parts, folder = {start: found.chunks[start].size for start in run}, self.folder / key
            target = self._path(key, run[0], sum(parts.values()))
            paths = [chunk_path(folder, start, start + size) for start, size in parts.items()]
            bytes_ref, arrays_ref = self._loader(caller.node).join.remote(paths, target)
            found.join = _Join(parts, bytes_ref, arrays_ref, caller)

    def copy(self, key: str, source: str, caller: Caller) -> None:
        """Replace the chunks of `key` by copies of the chunks of `source`."""
        self.delete(key)
        self._finish_join(source)
        for path in stored_chunks(self.folder / source):
            duplicate(path, self.folder / key / path.name)
        self.open(key, caller)

    def delete(self, key: str) -> None:
        """Free all copies of `key` and delete its files."""
        self._finish_join(key)
        found = self._keys.pop(key, None)
        for start in found.chunks if found else ():
            self._forget_copy(key, start)
        remove(self.folder / key)

    def reload(self, key: str, lost: dict[int, Any], caller: Caller) -> None:
        """Put copies again that a caller could not get. `lost`: their references by the first ids of the chunks."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._loaders = {node: loader for node, loader in self._loaders.items() if not node or node in alive}
        chunks = self.open(key, caller)
        for start, source in lost.items():
            placed = chunks.get(start)
            # Another caller may have noticed the loss first.
            if placed is not None and placed.source == source:
                self._copy(key, start, Written(placed.size, placed.num_bytes), caller)

    def sizes(self, key: str) -> dict[str, int]:
        """Return the numbers of chunks, samples and bytes of `key`; `spilled_bytes` are those only on disk."""
        chunks = self._keys[key].chunks.values() if key in self._keys else ()
        return {
            "chunks": len(chunks),
            "samples": sum(placed.size for placed in chunks),
            "bytes": sum(placed.num_bytes for placed in chunks),
            "spilled_bytes": sum(placed.num_bytes for placed in chunks if isinstance(placed.source, Location)),
        }

    def _stored(self, key: str) -> Iterator[tuple[int, int, Arrays]]:
        """Yield the chunks in the files of `key`, without what a crash has left beside them."""
        paths = stored_chunks(self.folder / key)
        # These are parts of a joined chunk, and files that were not written to their end.
        for leftover in files(self.folder / key):
            if fnmatch(leftover.name, "*.arrow*") and leftover not in paths:
                leftover.unlink(missing_ok=True)
        yield from read_stored(self.folder / key)

    def _copy(self, key: str, start: int, written: Written, caller: Caller, source: Any = None) -> None:
        """Enter a chunk with a new copy. `source`: reference of the copy; None: the node's loader puts it."""
        if source is None:
            source = self._loader(caller.node).load.remote(self._path(key, start, written.size))
        self._keys[key].put(start, Placed(source, *written))
        self._forget_copy(key, start)
        # The newest copy is at the end.
        node = "" if caller.shared else caller.node
        self._copies[key, start] = node, written.num_bytes
        self._on_node[node] = self._on_node.get(node, 0) + written.num_bytes

    def _remove(self, key: str, start: int) -> None:
        placed = self._keys[key].pop(start)
        self._forget_copy(key, start)
        self._path(key, start, placed.size).unlink(missing_ok=True)

    def _forget_copy(self, key: str, start: int) -> int:
        """Stop counting a copy, if there is one; return its bytes."""
        node, freed = self._copies.pop((key, start), ("", 0))
        self._on_node[node] = self._on_node.get(node, 0) - freed
        return freed

    def _shed(self) -> None:
        """Free the oldest copies until the remaining ones are within the limit on every node."""
        while full := self._over():
            key, start = next(place for place, (node, _) in self._copies.items() if node in full)
            self.shed += self._forget_copy(key, start)
            placed = self._keys[key].chunks[start]
            self._keys[key].put(start, placed._replace(source=self._path(key, start, placed.size)))

    def _over(self) -> set[str]:
        """Return a node whose copies exceed the limit, together with the empty name that stands for every node."""
        everywhere = self._on_node.get("", 0)
        node, most = max(self._on_node.items(), key=lambda item: item[1] * bool(item[0]), default=("", 0))
        return {node, ""} if everywhere + most * bool(node) > self.limit else set()

    def _finish_join(self, key: str) -> None:
        """Replace chunks that have been joined by the joined chunk. Waits until the join has ended."""
        found = self._keys.get(key)
        if found is None or found.join is None:
            return
        join, found.join = found.join, None
        found.joined_to = max(found.joined_to, join.start + join.size * (join.size > COMPACT // 2))
        try:
            size: Any = ray.get(join.bytes_ref)
        except Exception as error:
            # The parts stay as they are, and are not tried again.
            found.joined_to = join.start + join.size
            reason = in_words(error) if is_lost(error) else first_line(error)
            log.info(f"chunks of {key} have not been joined: {reason}")
            return
        if {start: found.chunks[start].size for start in join.parts if start in found.chunks} != join.parts:
            self._path(key, join.start, join.size).unlink(missing_ok=True)
            return
        for start in join.parts:
            self._remove(key, start)
        self._copy(key, join.start, Written(join.size, size), join.caller, join.arrays_ref)
        if join.dropped == set(join.parts):
            self._remove(key, join.start)
        self._shed()

    def _loader(self, node: str) -> Any:
        if node not in self._loaders:
            where = node or ray.get_runtime_context().get_node_id()
            options: dict[str, Any] = {
                "num_cpus": 0,
                "max_restarts": -1,
                "max_task_retries": -1,
                "concurrency_groups": {JOIN: 1},
                "scheduling_strategy": NodeAffinitySchedulingStrategy(where, soft=False),
            }
            self._loaders[node] = ray.remote(**options)(ChunkLoader).remote()
        return self._loaders[node]

    def _path(self, key: str, start: int, size: int) -> Location:
        return chunk_path(self.folder / key, start, start + size)
