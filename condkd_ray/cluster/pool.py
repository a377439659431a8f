"""The shared pool: one Ray actor that owns all chunks of synthetic samples of a sweep.

The pool receives arrays by value. It writes each chunk to a file first and then puts a copy into the object store,
which trials map. Trials own no chunk, so the death of a trial loses none. A restarted pool loads its chunks from the
files.

A chunk holds samples with consecutive ids; it is named by its first id. A key names the chunks that belong together:
those of one trial, or those that several trials share.
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
"""Longest wait, in seconds, for the pool's and then the nodes' statistics after a sweep; a node may just be lost."""
STATUS_SECONDS = 1.0
"""Shortest time between two writes of the pool's status file."""
SILENCE_SECONDS = 15.0
"""Seconds without a heartbeat after which another trial may make a key's rounds (our choice; one comes every 2 s)."""


class Placed(NamedTuple):
    """Location of a chunk, with its number of samples and its bytes.

    `source`: object reference of the copy in the object store, or the path of the file if there is no copy.
    """

    source: Any
    size: int
    num_bytes: int


class ChunkCache:
    """Chunks by key and first id, with their files under `folder`. Use it inside an actor, which then owns the objects.

    `limit`: bytes of copies in the object store. Beyond it the oldest copies are freed and trials map their files
    instead: no sample is lost and no trial waits, but draws then read from disk or from the system's file cache.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.keys: dict[str, dict[int, Placed]] = {}
        """Chunks of the keys in use, by key and first id."""
        self._copies: dict[tuple[str, int], int] = {}
        self.changes = Counter[str]()
        """Number of changes to the chunks of each key."""
        self.shed = 0
        """Bytes of copies freed so far because of the limit."""

    def open(self, key: str) -> dict[int, Placed]:
        """Return the chunks of `key` by first id, in order. The first call for a key loads its files."""
        if key not in self.keys:
            self.changes[key] += 1
            paths = stored_chunks(self.folder / key)
            # A crash can leave parts of a joined chunk and half-written files.
            for leftover in files(self.folder / key):
                if fnmatch(leftover.name, "*.arrow*") and leftover not in paths:
                    leftover.unlink()
            self.keys[key] = {}
            for start, stop, arrays in read_stored(self.folder / key):
                self._cache(key, start, arrays, stop - start)
                self._shed()
        return self.keys[key]

    def place(self, key: str, start: int, arrays: Arrays) -> None:
        """Store the chunk whose first id is `start`; it replaces a chunk already there."""
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
        """Join small neighbouring chunks whose ids are all below `sealed`."""
        spans = [(start, placed.size) for start, placed in self.open(key).items() if start + placed.size <= sealed]
        for run in joinable(spans):
            parts = [self.read(key, start) for start in run]
            # Only some parts have logits if the trial reads none and was begun by an older version, which stored them.
            width = min(logits.shape[1] for _, _, logits in parts)
            parts = [(images, labels, logits[:, :width]) for images, labels, logits in parts]
            images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            # Write the joined file first: after a crash in between it is used and its parts are ignored.
            self.place(key, run[0], (images, labels, logits))
            for start in run[1:]:
                self.remove(key, start)

    def copy(self, key: str, source: str) -> None:
        """Replace the chunks of `key` by those of `source`."""
        self.delete(key)
        for path in stored_chunks(self.folder / source):
            duplicate(path, self.folder / key / path.name)
        self.open(key)

    def delete(self, key: str) -> None:
        """Free all copies of `key` and delete its files."""
        for start in self.keys.pop(key, {}):
            self._copies.pop((key, start), None)
        remove(self.folder / key)

    def read(self, key: str, start: int) -> Arrays:
        """Return a chunk's arrays, read from its file."""
        placed = self.keys[key][start]
        return read_chunk(chunk_path(self.folder / key, start, start + placed.size))

    def sizes(self, key: str) -> dict[str, int]:
        """Return chunks, samples and bytes of `key`, and its `spilled_bytes`, which are on disk alone."""
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
        # Keep the newest copy at the end.
        self._copies.pop((key, start), None)
        self._copies[key, start] = num_bytes

    def _shed(self) -> None:
        """Free the oldest copies until the rest is within the limit."""
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
"""A version, and all chunks of a key by first id; None in place of the chunks if the caller has that version."""


class Taken(NamedTuple):
    """The pool's answer to a request for a round. `metrics`: of its synthesis; None while the round does not exist."""

    table: Table
    metrics: Metrics | None
    turn: bool
    """True if the round does not exist yet and the caller is to make it."""


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method is idempotent.

    A key belongs to one trial (`append`; `fill` and `tend` if producers make its images), or several trials share
    it: then each round of images is made once (`take`, `deliver`), or every trial adds its own (`contribute`).

    Arguments in common: `trial` is the key of the calling trial; `have` is the version of the chunk table that the
    caller has, so that an unchanged table is not sent again.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self._chunks = ChunkCache(folder, limit)
        self._rounds: dict[str, dict[str, Any]] = {}
        self._makers: dict[str, tuple[str, float]] = {}
        self._readers: dict[str, Counter[str]] = defaultdict(Counter)
        # A restarted pool counts from 0 and stores every object again; the epoch distinguishes its versions from
        # earlier ones.
        self._epoch = secrets.token_hex(8)
        self._last_status = 0.0

    def append(
        self, key: str, start: int, arrays: Arrays, *, have: str = "", drop: Sequence[int] = (), sealed: int = 0
    ) -> Table:
        """Store the chunk whose first id is `start`; it replaces a chunk already there.

        `drop`: first ids of chunks to remove. `sealed`: ids below it are covered by a checkpoint. Only chunks of such
        ids are joined, because a resumed trial removes the others.
        """
        self._chunks.place(key, start, arrays)
        return self.tend(key, have, drop=drop, sealed=sealed)

    def fill(self, key: str, start: int, arrays: Arrays) -> None:
        """Store the chunk whose first id is `start`. Chunks may come in any order; one already there stays."""
        if start not in self._chunks.open(key):
            self._chunks.place(key, start, arrays)

    def tend(self, key: str, have: str = "", *, drop: Sequence[int] = (), sealed: int = 0) -> Table:
        """Drop and join chunks as `append` does, without adding one."""
        self.drop_chunks(key, drop)
        self._chunks.join(key, sealed)
        return self.table(key, have, key)

    def table(self, key: str, have: str = "", trial: str = "") -> Table:
        """Return the version and, unless it equals `have`, the locations of the chunks of `key`."""
        chunks = self._chunks.open(key)
        if trial:
            self._readers[key][trial] += 0
        self._write_status()
        version = f"{self._epoch}/{self._chunks.changes[key]}"
        return version, None if version == have else chunks

    def drop_chunks(self, key: str, starts: Sequence[int]) -> None:
        """Remove chunks by first id; unknown ids are ignored."""
        for start in set(starts) & set(self._chunks.open(key)):
            self._chunks.remove(key, start)

    def truncate(self, key: str, num_ids: int, have: str = "") -> Table:
        """Remove all ids from `num_ids` on."""
        self._chunks.truncate(key, num_ids)
        return self.table(key, have)

    def take(self, key: str, round: int, trial: str, have: str = "") -> Taken:
        """Return round `round`, from 0, of the shared `key`; without metrics if the round does not exist yet."""
        made = self._round_log(key)["rounds"]
        if round < len(made):
            self._readers[key][trial] += made[round]["who"] != trial
            return Taken(self.table(key, have, trial), made[round]["metrics"], False)
        return Taken(self.table(key, have, trial), None, self.claim(key, trial))

    def deliver(self, key: str, round: int, trial: str, arrays: Arrays, metrics: Metrics, have: str = "") -> Taken:
        """Store a missing round. A round already there stays: its maker's lease had expired before it delivered."""
        log = self._round_log(key)
        made = log["rounds"]
        if round == len(made):
            start = made[-1]["stop"] if made else 0
            self._chunks.place(key, start, arrays)
            made.append({"who": trial, "stop": start + len(arrays[1]), "metrics": metrics})
            self._write_log(key)
            self._chunks.join(key, made[-1]["stop"])
        return self.take(key, round, trial, have)

    def contribute(self, key: str, trial: str, round: int, arrays: Arrays, have: str = "") -> tuple[Table, list[int]]:
        """Add a trial's round to the samples that all trials of `key` draw from.

        Returns the first ids of the chunks that are new to the trial since its last call, its own chunk last. A
        repeated call for the same round returns the same ids and adds nothing.
        """
        log = self._round_log(key)
        views, given = log["views"].setdefault(trial, []), log["given"].setdefault(trial, [])
        if round == len(given):
            chunks = self._chunks.open(key)
            start = max((first + placed.size for first, placed in chunks.items()), default=0)
            self._chunks.place(key, start, arrays)
            given.append(start)
        if round == len(views):
            seen = {start for view in views for start in view}
            others = [start for start in self._chunks.open(key) if start not in seen and start != given[round]]
            views.append([*others, given[round]])
            self._readers[key][trial] += len(others)
        self._write_log(key)
        return self.table(key, have, trial), views[round]

    def received(self, key: str, trial: str, rounds: int) -> list[int]:
        """Return the first ids of the chunks that trial `trial` had received after `rounds` rounds, in that order."""
        return [start for view in self._round_log(key)["views"].get(trial, [])[:rounds] for start in view]

    def claim(self, key: str, trial: str) -> bool:
        """Record a heartbeat of trial `trial`; return whether it is the one to make the rounds of `key`.

        True if the trial makes them already, if no trial does, or if the last heartbeat of the trial that does is older
        than `SILENCE_SECONDS`.
        """
        maker, heartbeat = self._makers.get(key, (trial, 0.0))
        if maker != trial and time.monotonic() - heartbeat <= SILENCE_SECONDS:
            return False
        self._makers[key] = trial, time.monotonic()
        return True

    def release(self, key: str, trial: str) -> None:
        """End the lease of trial `trial` on making rounds of `key`."""
        if self.maker(key) == trial:
            del self._makers[key]

    def maker(self, key: str) -> str:
        """Return the trial that makes the rounds of `key`, or made them last; empty if there is none."""
        return self._makers.get(key, ("", 0.0))[0]

    def inherit(self, key: str, source: str) -> None:
        """Replace the chunks of `key` by those of `source`."""
        self._chunks.copy(key, source)

    def delete(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._chunks.delete(key)
        self._rounds.pop(key, None)
        self._write_status()

    def stats(self) -> dict[str, int]:
        """Return numbers of keys, chunks and samples; bytes in all, on disk alone, and freed so far by the limit."""
        found = [self._chunks.sizes(key) for key in self._chunks.keys]
        names = ("chunks", "samples", "bytes", "spilled_bytes")
        sums = {name: sum(sizes[name] for sizes in found) for name in names}
        return {"keys": len(found), "shed": self._chunks.shed} | sums

    def describe(self) -> list[dict[str, Any]]:
        """Return for each key its sizes, rounds, readers, maker, and `hits`: the rounds that a reader did not make."""
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

    def _round_log(self, key: str) -> dict[str, Any]:
        """Return the log of a shared key's rounds; the first call reads it from its file."""
        if key not in self._rounds:
            path = self._chunks.folder / key / "rounds.json"
            empty: dict[str, Any] = {"rounds": [], "views": {}, "given": {}}
            self._rounds[key] = json.loads(get_text(path)) if path.is_file() else empty
            self._drop_unknown(key, self._rounds[key])
        return self._rounds[key]

    def _drop_unknown(self, key: str, log: dict[str, Any]) -> None:
        """Remove chunks missing from the log: their maker has no answer yet and delivers them again."""
        if log["rounds"]:
            self._chunks.truncate(key, log["rounds"][-1]["stop"])
            return
        known = {start for starts in log["given"].values() for start in starts}
        self.drop_chunks(key, sorted(set(self._chunks.open(key)) - known))

    def _write_log(self, key: str) -> None:
        put_text(self._chunks.folder / key / "rounds.json", json.dumps(self._rounds[key]))

    def _write_status(self) -> None:
        """Write the status file, at most once in `STATUS_SECONDS`."""
        if time.monotonic() - self._last_status > STATUS_SECONDS:
            self._last_status = time.monotonic()
            status = {"limit": self._chunks.limit, "keys": self.describe(), "time": time.time()}
            put_text(self._chunks.folder / STATUS, json.dumps(status))


@contextmanager
def pool_of(options: ClusterOptions, chunks: Sequence[int]) -> Iterator[Any]:
    """Yield the pool of a sweep and end it after the block. `chunks`: bytes of a round's images, of each trial."""
    limit = default_limit() if options.pool_limit is None else options.pool_limit
    check_limit(limit, chunks)
    pool = make_pool(chunks_folder(options.place), limit)
    try:
        yield pool
    finally:
        log_spilling(pool, limit)
        ray.kill(pool)


def log_spilling(pool: Any, limit: int) -> None:
    """Log the bytes that had to be read from disk, by the pool's limit or by Ray: they slow a sweep down."""
    try:
        # The answer also means that the pool has finished all earlier calls, deletions among them.
        stats: Any = ray.get(pool.stats.remote(), timeout=STATS_SECONDS)
    except RayError:  # the pool is lost, which is logged elsewhere
        stats = {"shed": 0}
    if stats["shed"]:
        message = f"{stats['shed'] / 1e6:.0f} MB of samples exceeded the pool's limit of {limit / 1e6:.0f} MB"
        log.info(f"{message} and were read from disk")
    spilled = spilled_by_ray()
    if spilled is None:
        log.info("a node was lost just now: bytes that Ray moved to disk are unknown")
    elif spilled:
        room = "a lower --pool-limit leaves room for it"
        log.info(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: {room}")


def spilled_by_ray() -> int | None:
    """Return the bytes that the cluster has moved from its object stores to disk so far; None if it does not answer."""
    here = ray.get_runtime_context().get_node_id()
    # Any node would do; this one exists as long as the driver.
    own = next(node for node in ray.nodes() if node["NodeID"] == here)
    place = own["NodeManagerAddress"], own["NodeManagerPort"]
    try:
        reply = internal_api.get_memory_info_reply(state.state, *place, timeout_seconds=STATS_SECONDS)
    except RpcError:
        return None
    return reply.store_stats.spilled_bytes_total


def make_pool(folder: Location, limit: int) -> Any:
    """Start the pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    `limit`: bytes of its copies in shared memory. Call it in the driver: made inside a trial, the actor would die with
    the trial's resources.
    """
    return lasting_actor(SyntheticPool, folder, limit)


def lasting_actor(kind: type, *args: Any) -> Any:
    """Start an actor that holds no resources and that Ray restarts when it dies. End it with `ray.kill`."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
    return ray.remote(**options)(kind).remote(*args)


def default_limit() -> int:
    """Return the default `limit`: 60 % of the smallest object store in bytes; Ray puts other objects there too."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(0.6 * min(stores))


def chunk_bytes(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> int:
    """Return the bytes of a round's images in the pool: with labels, and with logits if a trial reads them.

    `scope`: the trial's actual scope, see `pool_key`. Samples that trials share always have logits.
    """
    teacher, kept = prepared.teacher, config.keeps_logits or scope != "trial"
    return round_bytes(config, teacher.image_shape, teacher.num_classes, logits=kept)


def check_limit(limit: int, chunks: Sequence[int]) -> None:
    """Raise `InputError` if one round's images, of `chunks` bytes each, exceed `limit`."""
    require(limit >= max(chunks), "pool limit", f"{limit} bytes", f"at least the {max(chunks)} bytes of a round")
