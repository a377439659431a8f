"""The shared pool: one actor that owns all chunks of a sweep.

Arrays come by value; each chunk is a file first and then a copy that others map. Trials own nothing, so nothing is lost
with them; a pool that was restarted maps its files again.
"""

import json
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np
import ray
from grpc import RpcError
from ray._private import internal_api, state
from ray.exceptions import RayError

from condkd_ray.cluster.files import STATUS, chunks_folder
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.core.method import Metrics, require
from condkd_ray.core.storage import Location, files, get_text, put_text, remove
from condkd_ray.methods.memory.chunk_table import joinable
from condkd_ray.methods.memory.store import (
    Arrays,
    chunk_path,
    duplicate,
    read_chunk,
    read_stored,
    stored_chunks,
    write_chunk,
)
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.plan import Scope

log = logging.getLogger(__name__)
STATS_SECONDS = 10.0
"""How long the pool, and then the nodes, are waited for when a sweep is over; some may just have been lost."""
STATUS_SECONDS = 1.0
SILENCE_SECONDS = 15.0
"""Without a sign of life, after which another may make a key's rounds (our choice; one comes every two seconds)."""


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
        self.keys: dict[str, dict[int, Placed]] = {}
        """Those in use, with their chunks."""
        self._copies: dict[tuple[str, int], int] = {}
        self.changes = Counter[str]()
        """How often the chunks of a key have changed."""
        self.shed = 0
        """Bytes of copies given up so far for the limit."""

    def open(self, key: str) -> dict[int, Placed]:
        """The chunks of `key` by first id, in order; at first use those whose files are there."""
        if key not in self.keys:
            self.changes[key] += 1
            paths = stored_chunks(self.folder / key)
            # What a crash has left: parts of a joined chunk, files half written.
            for leftover in files(self.folder / key):
                if fnmatch(leftover.name, "*.arrow*") and leftover not in paths:
                    leftover.unlink()
            self.keys[key] = {}
            for start, stop, arrays in read_stored(self.folder / key):
                self._cache(key, start, arrays, stop - start)
                self._shed()
        return self.keys[key]

    def place(self, key: str, start: int, arrays: Arrays) -> None:
        """Keep the chunk whose first id is `start`, in place of the one there."""
        old, size = self.open(key).get(start), len(arrays[1])
        write_chunk(chunk_path(self.folder / key, start, start + size), arrays)
        self._cache(key, start, arrays, size)
        self.keys[key] = dict(sorted(self.keys[key].items()))
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
        for start in self.keys.pop(key, {}):
            self._copies.pop((key, start), None)
        remove(self.folder / key)

    def read(self, key: str, start: int) -> Arrays:
        """A chunk's arrays, from its file."""
        placed = self.keys[key][start]
        return read_chunk(chunk_path(self.folder / key, start, start + placed.size))

    def sizes(self, key: str) -> dict[str, int]:
        """Chunks, samples and bytes of `key`, and the bytes that lie on disk alone."""
        chunks = self.keys.get(key, {}).values()
        return {
            "chunks": len(chunks),
            "samples": sum(placed.size for placed in chunks),
            "bytes": sum(placed.num_bytes for placed in chunks),
            "spilled_bytes": sum(placed.num_bytes for placed in chunks if isinstance(placed.source, Location)),
        }

    def _cache(self, key: str, start: int, arrays: Arrays, size: int) -> None:
        num_bytes = sum(array.nbytes for array in arrays)
        self.keys[key][start] = Placed(ray.put(arrays), size, num_bytes)
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
            placed = self.keys[key][start]
            path = chunk_path(self.folder / key, start, start + placed.size)
            self.keys[key][start] = placed._replace(source=path)
            self.changes[key] += 1


Table = tuple[str, dict[int, Placed] | None]
"""A version, and all chunks of a key by first id; None where the asker has that version."""


class Taken(NamedTuple):
    """What the pool says to one who wants a round. Where it is made, `metrics` are those of its making."""

    table: Table
    metrics: Metrics | None
    turn: bool
    """Whether it is not made, and the asker's to make."""


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method may be called twice without harm.

    A key belongs to one trial (`append`; `fill` and `tend` where producers make its images), or is shared: then its
    images come in rounds, each made once (`take`, `deliver`), or from all its trials as they come (`contribute`).
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self._chunks = ChunkCache(folder, limit)
        self._rounds: dict[str, dict[str, Any]] = {}
        self._makers: dict[str, tuple[str, float]] = {}
        self._readers: dict[str, Counter[str]] = defaultdict(Counter)
        # A restarted pool counts anew and has put every object anew: its versions must equal none of before.
        self._epoch = secrets.token_hex(8)
        self._told = 0.0

    def append(
        self, key: str, start: int, arrays: Arrays, *, have: str = "", drop: Sequence[int] = (), sealed: int = 0
    ) -> Table:
        """Keep the chunk whose first id is `start`, in place of the one there.

        `drop`: first ids of chunks that may go. `sealed`: ids below it are in a checkpoint; only chunks of such are
        joined, as others may have to go again.
        """
        self._chunks.place(key, start, arrays)
        return self.tend(key, have, drop=drop, sealed=sealed)

    def fill(self, key: str, start: int, arrays: Arrays) -> None:
        """Keep the chunk whose first id is `start`, in whatever order they come. One that is there already stays."""
        if start not in self._chunks.open(key):
            self._chunks.place(key, start, arrays)

    def tend(self, key: str, have: str = "", *, drop: Sequence[int] = (), sealed: int = 0) -> Table:
        """Drop and join chunks, as in `append`, without a new one."""
        self.drop_chunks(key, drop)
        self._chunks.join(key, sealed)
        return self.table(key, have, key)

    def table(self, key: str, have: str = "", who: str = "") -> Table:
        """Where the chunks of `key` are."""
        chunks = self._chunks.open(key)
        if who:
            self._readers[key][who] += 0
        self._tell()
        version = f"{self._epoch}/{self._chunks.changes[key]}"
        return version, None if version == have else chunks

    def drop_chunks(self, key: str, starts: Sequence[int]) -> None:
        """Remove chunks by first id; those already gone are passed over."""
        for start in set(starts) & set(self._chunks.open(key)):
            self._chunks.remove(key, start)

    def truncate(self, key: str, num_ids: int, have: str = "") -> Table:
        """Remove all ids from `num_ids` on."""
        self._chunks.truncate(key, num_ids)
        return self.table(key, have)

    def take(self, key: str, round: int, who: str, have: str = "") -> Taken:
        """Round `round` of the shared `key`, the first being 0; or whether `who` is to make it."""
        made = self._made(key)["rounds"]
        if round < len(made):
            self._readers[key][who] += made[round]["who"] != who
            return Taken(self.table(key, have, who), made[round]["metrics"], False)
        return Taken(self.table(key, have, who), None, self.claim(key, who))

    def deliver(self, key: str, round: int, who: str, arrays: Arrays, metrics: Metrics, have: str = "") -> Taken:
        """Keep a round that was missing. One that is there already stays: its maker was given up too early."""
        log = self._made(key)
        made = log["rounds"]
        if round == len(made):
            start = made[-1]["stop"] if made else 0
            self._chunks.place(key, start, arrays)
            made.append({"who": who, "stop": start + len(arrays[1]), "metrics": metrics})
            self._write_log(key)
            self._chunks.join(key, made[-1]["stop"])
        return self.take(key, round, who, have)

    def contribute(self, key: str, who: str, round: int, arrays: Arrays, have: str = "") -> tuple[Table, list[int]]:
        """Add a trial's round to what all trials of `key` draw from, and see what others have added since its last.

        Returns first ids of chunks, its own at the end. What it has seen in a round it sees again, should it ask again;
        a round it has given already is not taken a second time.
        """
        log = self._made(key)
        views, given = log["views"].setdefault(who, []), log["given"].setdefault(who, [])
        if round == len(given):
            chunks = self._chunks.open(key)
            start = max((first + placed.size for first, placed in chunks.items()), default=0)
            self._chunks.place(key, start, arrays)
            given.append(start)
        if round == len(views):
            seen = {start for view in views for start in view}
            others = [start for start in self._chunks.open(key) if start not in seen and start != given[round]]
            views.append([*others, given[round]])
            self._readers[key][who] += len(others)
        self._write_log(key)
        return self.table(key, have, who), views[round]

    def seen(self, key: str, who: str, rounds: int) -> list[int]:
        """First ids of the chunks `who` had seen after `rounds` rounds, in that order."""
        return [start for view in self._made(key)["views"].get(who, [])[:rounds] for start in view]

    def claim(self, key: str, who: str) -> bool:
        """A sign of life of one who makes the rounds of `key`, or would; whether these are its to make.

        They are where it made them before, nobody does, or who did has been silent for `SILENCE_SECONDS`.
        """
        maker, heard = self._makers.get(key, (who, 0.0))
        if maker != who and time.monotonic() - heard <= SILENCE_SECONDS:
            return False
        self._makers[key] = who, time.monotonic()
        return True

    def release(self, key: str, who: str) -> None:
        """`who` makes no more rounds of `key`."""
        if self.maker(key) == who:
            del self._makers[key]

    def maker(self, key: str) -> str:
        """Who makes the rounds of `key`, or made them last; empty where nobody does."""
        return self._makers.get(key, ("", 0.0))[0]

    def inherit(self, key: str, source: str) -> None:
        """Give `key` what `source` holds, in place of any it has."""
        self._chunks.copy(key, source)

    def forget(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._chunks.forget(key)
        self._rounds.pop(key, None)
        self._tell()

    def stats(self) -> dict[str, int]:
        """Keys in use, their chunks, samples and bytes, how many bytes of them lie on disk alone, or ever came to."""
        found = [self._chunks.sizes(key) for key in self._chunks.keys]
        names = ("chunks", "samples", "bytes", "spilled_bytes")
        sums = {name: sum(sizes[name] for sizes in found) for name in names}
        return {"keys": len(found), "shed": self._chunks.shed} | sums

    def describe(self) -> list[dict[str, Any]]:
        """For each key: sizes, rounds made, who reads it, who makes it, and how often a trial was spared a round."""
        return [
            {
                "key": key,
                **self._chunks.sizes(key),
                "rounds": len(self._rounds.get(key, {"rounds": []})["rounds"]),
                "readers": len(self._readers[key]),
                "hits": self._readers[key].total(),
                "maker": self.maker(key),
            }
            for key in self._chunks.keys
        ]

    def _made(self, key: str) -> dict[str, Any]:
        """What is written down of a shared key's rounds; at first use, from its file."""
        if key not in self._rounds:
            path = self._chunks.folder / key / "rounds.json"
            empty: dict[str, Any] = {"rounds": [], "views": {}, "given": {}}
            self._rounds[key] = json.loads(get_text(path)) if path.is_file() else empty
            self._drop_unknown(key, self._rounds[key])
        return self._rounds[key]

    def _drop_unknown(self, key: str, log: dict[str, Any]) -> None:
        """Remove chunks that are not written down: whoever made them has not heard that they are kept."""
        if log["rounds"]:
            self._chunks.truncate(key, log["rounds"][-1]["stop"])
            return
        known = {start for starts in log["given"].values() for start in starts}
        self.drop_chunks(key, sorted(set(self._chunks.open(key)) - known))

    def _write_log(self, key: str) -> None:
        put_text(self._chunks.folder / key / "rounds.json", json.dumps(self._rounds[key]))

    def _tell(self) -> None:
        """Write down what is held, now and then."""
        if time.monotonic() - self._told > STATUS_SECONDS:
            self._told = time.monotonic()
            status = {"limit": self._chunks.limit, "keys": self.describe(), "time": time.time()}
            put_text(self._chunks.folder / STATUS, json.dumps(status))


@contextmanager
def pool_of(options: ClusterOptions, chunks: Sequence[int]) -> Iterator[Any]:
    """The pool of a sweep, whose chunks have so many bytes; it ends with the block."""
    limit = default_limit() if options.pool_limit is None else options.pool_limit
    check_limit(limit, chunks)
    pool = make_pool(chunks_folder(options.place), limit)
    try:
        yield pool
    finally:
        tell_of_spilling(pool, limit)
        ray.kill(pool)


def tell_of_spilling(pool: Any, limit: int) -> None:
    """Samples that had to be read from disk slow a sweep down, which nobody could tell from outside."""
    try:
        # It also is waited for to have cleared up what it was told to.
        stats: Any = ray.get(pool.stats.remote(), timeout=STATS_SECONDS)
    except RayError:  # it is lost, which has been told of
        stats = {"shed": 0}
    if stats["shed"]:
        told = f"{stats['shed'] / 1e6:.0f} MB of samples were beyond the pool's limit of {limit / 1e6:.0f} MB"
        log.info(f"{told}: read from disk")
    spilled = spilled_by_ray()
    if spilled is None:
        log.info("a node has just been lost: whether Ray moved objects to disk is not known")
    elif spilled:
        room = "a lower --pool-limit leaves it more room"
        log.info(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: {room}")


def spilled_by_ray() -> int | None:
    """Bytes that the connected cluster has moved from its object stores to disk so far; None where it does not say."""
    here = ray.get_runtime_context().get_node_id()
    # Any node would do, but this one is alive as long as we are.
    own = next(node for node in ray.nodes() if node["NodeID"] == here)
    place = own["NodeManagerAddress"], own["NodeManagerPort"]
    try:
        reply = internal_api.get_memory_info_reply(state.state, *place, timeout_seconds=STATS_SECONDS)
    except RpcError:
        return None
    return reply.store_stats.spilled_bytes_total


def make_pool(folder: Location, limit: int) -> Any:
    """The pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    `limit`: bytes of its copies in shared memory. To be called by the driver: made inside a trial it would die with
    that trial's resources.
    """
    return lasting_actor(SyntheticPool, folder, limit)


def lasting_actor(kind: type, *args: Any) -> Any:
    """An actor that holds no resources, and is started again where it dies. End it with `ray.kill`."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
    return ray.remote(**options)(kind).remote(*args)


def default_limit() -> int:
    """Bytes of samples that the nodes' shared memory bears: 60 % of the smallest object store, as others use it too."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(0.6 * min(stores))


def chunk_bytes(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> int:
    """Bytes of a round's images as the pool keeps them: with labels, and logits where the trial or a sharer reads them.

    `scope`: the one the trial really has.
    """
    teacher, kept = prepared.teacher, config.keeps_logits or scope != "trial"
    return round_bytes(config, teacher.image_shape, teacher.num_classes, logits=kept)


def check_limit(limit: int, chunks: Sequence[int]) -> None:
    """Raise `InputError` where not even one round's images, of so many bytes, would fit."""
    require(limit >= max(chunks), "pool limit", f"{limit} bytes", f"at least the {max(chunks)} bytes of a round")
