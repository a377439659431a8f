"""Chunks of samples by key and first id: their files, and their copies in the object stores of the cluster's nodes.

A trial writes a chunk's file itself. The process that holds a `ChunkCache` then asks the `ChunkLoader` of a node to put
a copy into that node's object store; it owns the copy, so the death of a trial loses none.
"""

import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from condkd_ray.cluster.lost import in_words
from condkd_ray.cluster.pool.loader import JOIN, ChunkLoader, Written, size_of
from condkd_ray.core.chunk_files import (
    COMPACT,
    Arrays,
    chunk_path,
    chunk_range,
    duplicate,
    joinable,
    read_chunk,
    read_stored,
    stored_chunks,
    write_chunk,
)
from condkd_ray.core.storage import Location, files, move, remove

log = logging.getLogger(__name__)
UNNAMED = ".new"
"""Suffix of the files of chunks that the pool has not entered yet."""


def write(folder: Location, start: int, arrays: Arrays) -> Written:
    """Write a chunk whose first id is `start` to its file in a key's folder."""
    written = size_of(arrays)
    write_chunk(chunk_path(folder, start, start + written.size), arrays)
    return written


def write_unnamed(folder: Location, arrays: Arrays) -> dict[str, Any]:
    """Write a chunk whose ids the pool decides, or which it may have already.

    The pool renames the file (`ChunkCache.take_file`), or deletes it. Returns the arguments `file`, the file's name in
    `folder`, and `written` of a call of the pool.
    """
    name = _new_name()
    write_chunk(folder / name, arrays)
    return {"file": name, "written": size_of(arrays)}


def _new_name() -> str:
    return f".{secrets.token_hex(8)}.arrow{UNNAMED}"


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
    """True if `changed` has all chunks: the caller had no version, or one of another opening of the key."""


@dataclass
class _Join:
    """Chunks that are being joined. `parts`: their sizes by first id. The references are those of the results."""

    parts: dict[int, int]
    target: Location
    written_ref: Any
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

    @property
    def ended(self) -> bool:
        return bool(ray.wait([self.written_ref], timeout=0)[0])


class _Key:
    """The chunks of a key. `chunks`: by first id, in order of ids."""

    def __init__(self) -> None:
        self.chunks: dict[int, Placed] = {}
        # A key that is opened again puts its copies anew, so its versions must differ from older ones.
        self._epoch = secrets.token_hex(8)
        self._count = 0
        self._changes: dict[int, int] = {}
        """Number of the last change by first id of the chunk, the oldest change first."""
        self.joins: list[_Join] = []
        """Joins under way, in order of ids."""
        self.joined_to = 0
        """Chunks that begin before this id are not joined any more, or are being joined."""

    @property
    def version(self) -> str:
        return f"{self._epoch}/{self._count}"

    def put(self, start: int, placed: Placed) -> None:
        last = next(reversed(self.chunks), -1)
        self.chunks[start] = placed
        if start < last:
            self.chunks = dict(sorted(self.chunks.items()))
        self._note(start)

    def pop(self, start: int) -> Placed:
        self._note(start)
        return self.chunks.pop(start)

    def since(self, version: str) -> Table:
        """Return the changes since `version`. Takes time in proportion to their number."""
        epoch, _, count = version.partition("/")
        if epoch != self._epoch:
            return Table(self.version, self.chunks, [], True)
        starts = []
        for start in reversed(self._changes):
            if self._changes[start] <= int(count):
                break
            starts.append(start)
        changed = {start: self.chunks[start] for start in sorted(starts) if start in self.chunks}
        return Table(self.version, changed, [start for start in starts if start not in changed], False)

    def open_spans(self) -> list[tuple[int, int]]:
        """Return (first id, size) of the chunks from `joined_to` on, in order."""
        spans = list[tuple[int, int]]()
        for start in reversed(self.chunks):
            if start < self.joined_to:
                break
            spans.append((start, self.chunks[start].size))
        return spans[::-1]

    def _note(self, start: int) -> None:
        self._count += 1
        self._changes.pop(start, None)
        self._changes[start] = self._count


class ChunkCache:
    """Chunks by key and first id, with their files under `folder`. Use it inside an actor, which then owns the copies.

    No method waits for a file of more than one chunk, or for another process.

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
        self._abandoned: list[tuple[str, _Join]] = []
        """Joins whose results nobody needs, with their keys. Their files are deleted when they have ended."""
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
            try:
                for start, stop, arrays in self._stored(key):
                    self._enter(key, start, Written(stop - start, size_of(arrays).num_bytes), caller)
            except BaseException:
                # The next call must not take a part of the chunks for all of them.
                self._close(key)
                raise
            self._shed()
        return self._keys[key].chunks

    def table(self, key: str, caller: Caller) -> Table:
        """Return the changes of `key` since the caller's version."""
        self.open(key, caller)
        found = self._keys[key].since(caller.have)
        if found.whole and not caller.shared:
            # The trial may have moved to another node.
            for start in found.changed:
                if (key, start) in self._copies:
                    self._count_copy(key, start, caller.node, self._forget_copy(key, start))
        return found

    def place(self, key: str, start: int, written: Written, caller: Caller, *, copy: bool = True) -> None:
        """Enter the chunk in a file whose first id is `start`; it replaces an existing chunk with the same first id.

        `copy`: False if trials are to map the file until the chunk is joined with others.
        """
        old = self.open(key, caller).get(start)
        self._enter(key, start, written, caller, None if copy else self._path(key, start, written.size))
        if old is not None and old.size != written.size:
            self._path(key, start, old.size).unlink(missing_ok=True)
        self._shed()

    def take_file(
        self, key: str, start: int, file: str, written: Written, caller: Caller, *, copy: bool = True
    ) -> None:
        """Enter a chunk as `place` does, from a file that `write_unnamed` wrote.

        Raises `FileNotFoundError` if the file does not exist.
        """
        move(self.folder / key / file, self._path(key, start, written.size))
        self.place(key, start, written, caller, copy=copy)

    def drop(self, key: str, sizes: Mapping[int, int], caller: Caller) -> None:
        """Delete chunks, given by first id and size.

        Chunks that do not exist are ignored, such as one that has become a part of a larger chunk with the same first
        id. A chunk that is being joined is deleted with the joined one.
        """
        chunks = self.open(key, caller)
        for start, size in sizes.items():
            if start not in chunks or chunks[start].size != size:
                continue
            join = next((join for join in self._keys[key].joins if start in join.parts), None)
            if join is not None:
                join.dropped.add(start)
            else:
                self._remove(key, start)

    def truncate(self, key: str, num_ids: int, caller: Caller) -> None:
        """Remove all samples with ids of `num_ids` or more, also those in files that have not been entered."""
        chunks = self.open(key, caller)
        found = self._keys[key]
        for join in [join for join in found.joins if join.start + join.size > num_ids]:
            found.joins.remove(join)
            self._abandon(key, join)
        for start, placed in list(chunks.items()):
            if start >= num_ids:
                self._remove(key, start)
            elif start + placed.size > num_ids:
                arrays = read_chunk(self._path(key, start, placed.size))
                images, labels, logits = (array[: num_ids - start] for array in arrays)
                self.place(key, start, write(self.folder / key, start, (images, labels, logits)), caller)
        found.joined_to = min(found.joined_to, num_ids)
        for path in stored_chunks(self.folder / key):
            if chunk_range(path)[1] > num_ids:
                path.unlink(missing_ok=True)

    def join(self, key: str, sealed: int, caller: Caller) -> None:
        """Let small neighbouring chunks whose ids are all below `sealed` be joined, by the loader of the caller's node.

        A joined chunk replaces its parts at a later call. Each node joins one run of chunks at a time.
        """
        self.open(key, caller)
        found = self._keys[key]
        while found.joins and found.joins[0].ended:
            self._finish_join(key, found.joins.pop(0))
        self.clean()
        spans = [(start, size) for start, size in found.open_spans() if start + size <= sealed]
        for run in joinable(spans):
            parts = {start: found.chunks[start].size for start in run}
            target = self.folder / key / _new_name()
            sources = [found.chunks[start].source for start in run]
            written_ref, arrays_ref = self._loader(caller.node).join.remote(target, *sources)
            found.joins.append(_Join(parts, target, written_ref, arrays_ref, caller))
            found.joined_to = run[-1] + parts[run[-1]]

    def copy(self, key: str, source: str, caller: Caller) -> None:
        """Replace the chunks of `key` by copies of the chunks of `source`."""
        self.delete(key)
        for path in stored_chunks(self.folder / source):
            duplicate(path, self.folder / key / path.name)
        self.open(key, caller)

    def delete(self, key: str) -> None:
        """Free all copies of `key` and delete its files."""
        self._close(key)
        remove(self.folder / key)

    def reload(self, key: str, lost: Mapping[int, Any], caller: Caller) -> None:
        """Put copies again that a caller could not get. `lost`: their references by the first ids of the chunks."""
        chunks = self.open(key, caller)
        # Another caller may have noticed the loss first.
        gone = [start for start, source in lost.items() if start in chunks and chunks[start].source == source]
        if not gone:
            return
        # A node may be lost with its loader, and the loader of the caller's node may have ended for good.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        kept = {node: loader for node, loader in self._loaders.items() if node in alive and node != caller.node}
        self._loaders = kept
        for start in gone:
            self._enter(key, start, Written(chunks[start].size, chunks[start].num_bytes), caller)

    def clean(self) -> None:
        """Delete the files of abandoned joins that have ended."""
        ended = [(key, join) for key, join in self._abandoned if join.ended]
        for key, join in ended:
            self._abandoned.remove((key, join))
            join.target.unlink(missing_ok=True)
            if key not in self._keys:
                remove(self.folder / key)

    def wait_for_joins(self, seconds: float) -> None:
        """Wait at most so long until no join is under way that nobody needs, and delete their files."""
        if self._abandoned:
            refs = [join.written_ref for _, join in self._abandoned]
            ray.wait(refs, num_returns=len(refs), timeout=seconds)
        self.clean()

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
        # These are parts of a joined chunk, and files that were not written to their end. A file that a caller has
        # written for its next call stays.
        for leftover in files(self.folder / key):
            if fnmatch(leftover.name, "*.arrow*") and leftover not in paths and not leftover.name.endswith(UNNAMED):
                leftover.unlink(missing_ok=True)
        yield from read_stored(self.folder / key)

    def _enter(self, key: str, start: int, written: Written, caller: Caller, source: Any = None) -> None:
        """Enter a chunk. `source`: its copy or its file; None: the loader of the caller's node puts a copy."""
        if source is None:
            source = self._loader(caller.node).load.remote(self._path(key, start, written.size))
        self._keys[key].put(start, Placed(source, *written))
        self._forget_copy(key, start)
        if not isinstance(source, Location):
            self._count_copy(key, start, "" if caller.shared else caller.node, written.num_bytes)

    def _remove(self, key: str, start: int) -> None:
        placed = self._keys[key].pop(start)
        self._forget_copy(key, start)
        self._path(key, start, placed.size).unlink(missing_ok=True)

    def _close(self, key: str) -> None:
        """Free all copies of `key`, and forget it. Its files stay."""
        found = self._keys.pop(key, _Key())
        for start in found.chunks:
            self._forget_copy(key, start)
        for join in found.joins:
            self._abandon(key, join)

    def _abandon(self, key: str, join: _Join) -> None:
        self._abandoned.append((key, join))

    def _count_copy(self, key: str, start: int, node: str, num_bytes: int) -> None:
        """Count a copy on a node. The newest copy comes last."""
        self._copies[key, start] = node, num_bytes
        self._on_node[node] = self._on_node.get(node, 0) + num_bytes

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

    def _finish_join(self, key: str, join: _Join) -> None:
        """Replace the parts of a join that has ended by the joined chunk."""
        found = self._keys[key]
        try:
            written: Any = ray.get(join.written_ref)
        except RayError as error:
            written = in_words(error)
        there = {start: found.chunks[start].size for start in join.parts if start in found.chunks} == join.parts
        if there and not isinstance(written, str):
            # Rename the file first: after a crash in between, the joined file is used and its parts are ignored.
            move(join.target, self._path(key, join.start, join.size))
            for start in join.parts:
                self._remove(key, start)
            self._enter(key, join.start, written, join.caller, join.arrays_ref)
            if join.dropped == set(join.parts):
                self._remove(key, join.start)
            if join.size <= COMPACT // 2 and not found.joins:
                # It may be joined once more.
                found.joined_to = min(found.joined_to, join.start)
            return self._shed()
        # The parts stay as they are, and are not tried again.
        join.target.unlink(missing_ok=True)
        self.drop(key, {start: join.parts[start] for start in join.dropped}, join.caller)
        if isinstance(written, str):
            log.info(f"chunks of {key} have not been joined: {written}")

    def _loader(self, node: str) -> Any:
        if node not in self._loaders:
            where = node or ray.get_runtime_context().get_node_id()
            options: dict[str, Any] = {
                "num_cpus": 0,
                "max_restarts": -1,
                "max_task_retries": -1,
                "concurrency_groups": {JOIN: 1},
                # A join that waits for its parts holds up no load.
                "allow_out_of_order_execution": True,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(where, soft=False),
            }
            self._loaders[node] = ray.remote(**options)(ChunkLoader).remote()
        return self._loaders[node]

    def _path(self, key: str, start: int, size: int) -> Location:
        return chunk_path(self.folder / key, start, start + size)
