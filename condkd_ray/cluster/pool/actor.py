"""The shared pool: one Ray actor that owns all chunks of synthetic samples of a sweep.

The pool receives arrays by value. It writes each chunk to a file first and then puts a copy, which trials map, into the
object store. Trials own no chunk, so the death of a trial loses none. A restarted pool loads its chunks from the files.

A chunk holds samples with consecutive ids; it is named by its first id. A key names the chunks that belong together:
those of one trial, or those that several trials share.
"""

import json
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np
import ray

from condkd_ray.cluster.actors import lasting_actor
from condkd_ray.cluster.files import STATUS
from condkd_ray.core.method import Metrics
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

log = logging.getLogger(__name__)
STATUS_SECONDS = 1.0
"""Shortest time between two writes of the pool's status file."""
SILENCE_SECONDS = 15.0
"""Seconds without a heartbeat after which another trial may make the rounds of a key (our choice).

Heartbeats come every 2 s.
"""


class Placed(NamedTuple):
    """Location of a chunk, its `size` in samples, and its size in bytes.

    `source`: object reference of the copy in the object store, or the path of the file if there is no copy.
    """

    source: Any
    size: int
    num_bytes: int


class ChunkCache:
    """Chunks by key and first id, with their files under `folder`. Use it inside an actor, which then owns the objects.

    `limit`: bytes of copies in the object store. Beyond this limit the oldest copies are freed, and trials map the
    files of these chunks instead: no sample is lost and no trial waits, but draws then read from disk or from the
    system's file cache.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.keys: dict[str, dict[int, Placed]] = {}
        """Chunks of the keys in use, by key and first id."""
        self._copies: dict[tuple[str, int], int] = {}
        """Bytes of each copy in the object store, by key and first id, the oldest first."""
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
        """Store the chunk whose first id is `start`; it replaces an existing chunk with the same first id."""
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
        """Remove all samples with ids of `num_ids` or more."""
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
            # If the trial reads no logits, an older version that began it may have stored them in its chunks.
            if not all(logits.shape[1] for _, _, logits in parts):
                parts = [(images, labels, logits.reshape(len(logits), -1)[:, :0]) for images, labels, logits in parts]
            images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            # Write the joined file first: after a crash in between, the joined file is used and its parts are ignored.
            self.place(key, run[0], (images, labels, logits))
            for start in run[1:]:
                self.remove(key, start)

    def copy(self, key: str, source: str) -> None:
        """Replace the chunks of `key` by copies of the chunks of `source`."""
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
        """Return the numbers of chunks, samples and bytes of `key`; `spilled_bytes` are those only on disk."""
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
        """Free the oldest copies until the remaining ones are within the limit."""
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
"""Version of a key's chunk table, and the table: all chunks by first id, or None if the caller has this version."""


class Taken(NamedTuple):
    """The pool's reply to a request for a round.

    `table`: the key's chunks. `metrics`: metrics of the round's synthesis; None while the round does not exist.
    """

    table: Table
    metrics: Metrics | None
    turn: bool
    """True if the round does not exist yet and the caller is to make it."""


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method is idempotent.

    A key belongs to one trial (`append`; `fill` and `tend` if producers make its images), or several trials share it.
    For a shared key, each round of images is made once (`take`, `deliver`), or each trial adds its own (`contribute`).

    Arguments in common: `trial` is the key of the calling trial; `have` is the version of the chunk table that the
    caller has, so that an unchanged table is not sent again.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self._chunks = ChunkCache(folder, limit)
        self._rounds: dict[str, dict[str, Any]] = {}
        self._makers: dict[str, tuple[str, float]] = {}
        self._readers: dict[str, Counter[str]] = defaultdict(Counter)
        # A restarted pool counts from 0 and puts each object anew; the epoch makes its versions differ from older ones.
        self._epoch = secrets.token_hex(8)
        self._last_status = 0.0

    def append(
        self, key: str, start: int, arrays: Arrays, *, have: str = "", drop: Sequence[int] = (), sealed: int = 0
    ) -> Table:
        """Store the chunk whose first id is `start`; it replaces an existing chunk with the same first id.

        `drop`: first ids of chunks to remove. `sealed`: the samples with smaller ids are covered by a checkpoint. Only
        chunks of such samples are joined, as a resumed trial removes the others.
        """
        self._chunks.place(key, start, arrays)
        return self.tend(key, have, drop=drop, sealed=sealed)

    def fill(self, key: str, start: int, arrays: Arrays) -> None:
        """Store the chunk whose first id is `start`, unless it exists. Chunks may come in any order."""
        if start not in self._chunks.open(key):
            self._chunks.place(key, start, arrays)

    def tend(self, key: str, have: str = "", *, drop: Sequence[int] = (), sealed: int = 0) -> Table:
        """Drop and join chunks as `append` does, without adding one."""
        self.drop_chunks(key, drop)
        self._chunks.join(key, sealed)
        return self.table(key, have, key)

    def table(self, key: str, have: str = "", trial: str = "") -> Table:
        """Return the version and, unless this equals `have`, the locations of the chunks of `key`."""
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
        """Remove all samples with ids of `num_ids` or more."""
        self._chunks.truncate(key, num_ids)
        return self.table(key, have)

    def take(self, key: str, round: int, trial: str, have: str = "") -> Taken:
        """Return round `round` (from 0) of the shared `key`; without metrics if the round does not exist yet."""
        made = self._round_log(key)["rounds"]
        if round < len(made):
            self._readers[key][trial] += made[round]["who"] != trial
            return Taken(self.table(key, have, trial), made[round]["metrics"], False)
        return Taken(self.table(key, have, trial), None, self.claim(key, trial))

    def deliver(self, key: str, round: int, trial: str, arrays: Arrays, metrics: Metrics, have: str = "") -> Taken:
        """Store a missing round, and return it as `take` does.

        A stored round is kept: the calling trial's lease has expired, and another trial has delivered the round.
        """
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
        """Record a heartbeat of trial `trial`; return whether this trial is the one to make the rounds of `key`.

        True if the trial makes them already, if no trial does, or if the last heartbeat of the trial that makes them is
        older than `SILENCE_SECONDS`. Otherwise no heartbeat is recorded.
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
        """Replace the chunks of `key` by copies of the chunks of `source`."""
        self._chunks.copy(key, source)

    def delete(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._chunks.delete(key)
        self._rounds.pop(key, None)
        self._write_status()

    def stats(self) -> dict[str, int]:
        """Return the numbers of keys, chunks and samples, and three numbers of bytes.

        `bytes`: of all chunks. `spilled_bytes`: of the chunks that are only on disk. `shed`: of all copies freed so far
        because of the limit.
        """
        found = [self._chunks.sizes(key) for key in self._chunks.keys]
        names = ("chunks", "samples", "bytes", "spilled_bytes")
        sums = {name: sum(sizes[name] for sizes in found) for name in names}
        return {"keys": len(found), "shed": self._chunks.shed} | sums

    def describe(self) -> list[dict[str, Any]]:
        """Return for each key its sizes, numbers of rounds and readers, its maker, and its `hits`.

        `hits`: number of times that a reader has got a round that another trial had made.
        """
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
        """Remove chunks missing from the log: their maker has got no reply yet and delivers them again."""
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


def make_pool(folder: Location, limit: int) -> Any:
    """Start the pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    `limit`: bytes of its copies in shared memory. Call it in the driver: made inside a trial, the actor would die with
    the trial's resources.
    """
    return lasting_actor(SyntheticPool, folder, limit)
