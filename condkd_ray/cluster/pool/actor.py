"""The shared pool: one Ray actor that owns the copies of all chunks of synthetic samples of a sweep.

A trial writes each chunk to a file and tells the pool, which lets a copy be put into the object store of the trial's
node and replies where it is; see `chunks`. Trials own no copy, so the death of a trial loses none. A restarted pool
loads its chunks from the files.

A chunk holds samples with consecutive ids; it is named by its first id. A key names the chunks that belong together:
those of one trial, or those that several trials share.
"""

import json
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from condkd_ray.cluster.actors import lasting_actor
from condkd_ray.cluster.files import STATUS
from condkd_ray.cluster.pool.chunks import HERE, Caller, ChunkCache, Table, Written
from condkd_ray.cluster.pool.round_log import RoundLog
from condkd_ray.core.chunk_files import MissingSamplesError
from condkd_ray.core.dispensable import dispensable
from condkd_ray.core.method import Metrics
from condkd_ray.core.storage import Location, writing

log = logging.getLogger(__name__)
STATUS_SECONDS = 1.0
"""Shortest time between two writes of the pool's status file."""
SILENCE_SECONDS = 15.0
"""Seconds without a heartbeat after which another trial may make the rounds of a key (our choice).

Heartbeats come every 2 s.
"""
STATS_JOIN_SECONDS = 5.0
"""Longest wait of `stats` for joins of chunks that have been deleted, in seconds."""

NOTHING: Mapping[int, int] = MappingProxyType({})


def _check_rounds(key: str, round: int, count: int) -> None:
    """Raise `MissingSamplesError` if a trial asks for a later round than the one after the `count` rounds of the log.

    A power loss can take the last lines of a log. The trials that have used these rounds must start again.
    """
    if round > count:
        raise MissingSamplesError(f"round {round} of {key} follows a missing one: its log has {count}")


class Taken(NamedTuple):
    """The pool's reply to a request for a round.

    `table`: the changes of the key's chunks. `metrics`: metrics of the round's synthesis; None while the round does not
    exist.
    """

    table: Table
    metrics: Metrics | None
    turn: bool
    """True if the round does not exist yet and the caller is to make it."""


class Received(NamedTuple):
    """The pool's reply to a contributed round.

    `table`: the changes of the key's chunks. `sizes`: numbers of samples of the rounds that the trial takes over now,
    its own one last, in the order of their ids.
    """

    table: Table
    sizes: list[int]


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method is idempotent.

    A key belongs to one trial (`append`; `fill` and `tend` if producers make its images), or several trials share it.
    For a shared key, each round of images is made once (`take`, `deliver`), or each trial adds its own (`contribute`).

    Arguments in common: `trial` is the key of the calling trial; `caller` describes the store that calls, and the
    version of the chunk table that it has, so that only changes are sent; `written` is the size of the chunk that the
    caller has written to its file.
    """

    def __init__(self, folder: Location, limit: int) -> None:
        # The store that asks for a lost copy handles its loss. Ray would also print one that nobody asks for.
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
        self._chunks = ChunkCache(folder, limit)
        self._logs: dict[str, RoundLog] = {}
        self._makers: dict[str, tuple[str, float]] = {}
        self._readers: dict[str, Counter[str]] = defaultdict(Counter)
        self._last_status = 0.0
        # The status is written in a thread: no trial waits for a slow storage.
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def folder(self) -> Location:
        """Return the folder of all chunks. The chunks of a key are in its subfolder `key`."""
        return self._chunks.folder

    def append(
        self,
        key: str,
        start: int,
        written: Written,
        caller: Caller = HERE,
        *,
        drop: Mapping[int, int] = NOTHING,
        sealed: int = 0,
    ) -> Table:
        """Enter the chunk whose first id is `start`; it replaces an existing chunk with the same first id.

        `drop`: chunks to remove, their sizes by first id. `sealed`: the samples with smaller ids are covered by a
        checkpoint. Only chunks of such samples are joined, as a resumed trial removes the others.
        """
        self._chunks.place(key, start, written, caller)
        return self.tend(key, caller, drop=drop, sealed=sealed)

    def fill(self, key: str, start: int, file: str, written: Written, caller: Caller = HERE) -> None:
        """Enter the chunk whose first id is `start`, unless it exists. Chunks may come in any order.

        `file`: see `contribute`.
        """
        if start in self._chunks.open(key, caller):
            (self._chunks.folder / key / file).unlink(missing_ok=True)
        else:
            self._chunks.take_file(key, start, file, written, caller)

    def tend(self, key: str, caller: Caller = HERE, *, drop: Mapping[int, int] = NOTHING, sealed: int = 0) -> Table:
        """Drop and join chunks as `append` does, without adding one."""
        self._chunks.drop(key, drop, caller)
        self._chunks.join(key, sealed, caller)
        return self.table(key, caller, key)

    def table(self, key: str, caller: Caller = HERE, trial: str = "") -> Table:
        """Return the changes of the chunks of `key` since the version that the caller has."""
        found = self._chunks.table(key, caller)
        if trial:
            self._readers[key][trial] += 0
        self._write_status()
        return found

    def truncate(self, key: str, num_ids: int, caller: Caller = HERE) -> Table:
        """Remove all samples with ids of `num_ids` or more."""
        self._chunks.truncate(key, num_ids, caller)
        return self.table(key, caller)

    def reload(self, key: str, lost: Mapping[int, Any], caller: Caller = HERE) -> None:
        """Put copies again that a caller could not get. `lost`: their references by the first ids of the chunks."""
        self._chunks.reload(key, lost, caller)

    def take(self, key: str, round: int, trial: str, caller: Caller = HERE) -> Taken:
        """Return round `round` (from 0) of the shared `key`; without metrics if the round does not exist yet.

        Raises `MissingSamplesError` if an earlier round does not exist either.
        """
        rounds = self._log(key, caller).rounds
        _check_rounds(key, round, len(rounds))
        if round < len(rounds):
            self._readers[key][trial] += rounds[round].trial != trial
            return Taken(self.table(key, caller, trial), rounds[round].metrics, False)
        return Taken(self.table(key, caller, trial), None, self.claim(key, trial))

    def deliver(
        self,
        key: str,
        round: int,
        trial: str,
        file: str,
        written: Written,
        metrics: Metrics,
        caller: Caller = HERE,
    ) -> Taken:
        """Add a missing round, and return it as `take` does. `file`: see `contribute`.

        A round that is there is kept: the calling trial's lease has expired, and another trial has delivered the round.
        """
        _check_rounds(key, round, len(self._log(key, caller).rounds))
        if round == len(self._log(key, caller).rounds):
            self._add(key, trial, file, written, caller, metrics)
        else:
            (self._chunks.folder / key / file).unlink(missing_ok=True)
        return self.take(key, round, trial, caller)

    def contribute(
        self, key: str, round: int, trial: str, file: str, written: Written, caller: Caller = HERE
    ) -> Received:
        """Add a trial's round to the samples that all trials of `key` draw from.

        Returns the rounds that are new to the trial since its last call, its own one last. A repeated call for the same
        round returns the same rounds and adds nothing.

        `file`: name of the chunk's file, see `chunks.write_unnamed`; the ids depend on the order in which rounds
        arrive. Raises `FileNotFoundError` if it does not exist: a call that was cut off has renamed it, and the caller
        writes it again. Raises `MissingSamplesError` if an earlier round of the trial is missing.
        """
        found = self._log(key, caller)
        _check_rounds(key, round, len(found.of_trial[trial]))
        if new := round == len(found.of_trial[trial]):
            self._add(key, trial, file, written, caller)
        else:
            (self._chunks.folder / key / file).unlink(missing_ok=True)
        sizes = found.received(trial, round)
        self._readers[key][trial] += (len(sizes) - 1) * new
        return Received(self.table(key, caller, trial), sizes)

    def _add(
        self, key: str, trial: str, file: str, written: Written, caller: Caller, metrics: Metrics | None = None
    ) -> None:
        """Add a round to a shared key, after all others. `metrics`: None if all trials add rounds of their own.

        Each trial then gets the rounds of all others in one reply. References of their copies would take most of the
        pool's time, so the trials map the files of rounds that have not been joined yet. In an object store files
        cannot be mapped.
        """
        found, alone = self._log(key, caller), metrics is None and isinstance(self._chunks.folder, Path)
        self._chunks.take_file(key, found.num_ids, file, written, caller, copy=not alone)
        found.append(trial, written.size, metrics)
        self._chunks.join(key, found.num_ids, caller)

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

    def inherit(self, key: str, source: str, caller: Caller = HERE) -> None:
        """Replace the chunks of `key` by copies of the chunks of `source`."""
        self._chunks.copy(key, source, caller)

    def delete(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._chunks.delete(key)
        # A sweep may have thousands of keys, one after another.
        for table in (self._logs, self._makers, self._readers):
            table.pop(key, None)
        self._write_status()

    def stats(self) -> dict[str, int]:
        """Return the numbers of keys, chunks and samples, and three numbers of bytes.

        `bytes`: of all chunks. `spilled_bytes`: of the chunks that are only on disk. `shed`: of all copies freed so far
        because of the limit.
        """
        self._chunks.wait_for_joins(STATS_JOIN_SECONDS)
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
                "rounds": len(self._logs[key].rounds) if key in self._logs else 0,
                "readers": len(self._readers[key]),
                "hits": self._readers[key].total(),
                "maker": self.maker(key),
            }
            for key in self._chunks.keys
        ]

    def _log(self, key: str, caller: Caller) -> RoundLog:
        """Return the log of a shared key's rounds; the first call reads it from its files.

        Chunks and rounds are removed that lack their counterpart: their maker has got no reply yet and sends them
        again.
        """
        if key not in self._logs:
            covered = 0
            for start, placed in self._chunks.open(key, caller).items():
                covered += placed.size * (start == covered)
            found = RoundLog(self._chunks.folder / key, covered)
            self._chunks.truncate(key, found.num_ids, caller)
            self._logs[key] = found
        return self._logs[key]

    def _write_status(self) -> None:
        """Write the status file, at most once in `STATUS_SECONDS`."""
        if time.monotonic() - self._last_status <= STATUS_SECONDS or not (
            self._writing is None or self._writing.done()
        ):
            return
        self._last_status = time.monotonic()
        status = {"limit": self._chunks.limit, "keys": self.describe(), "time": time.time()}
        self._writing = self._writer.submit(_write, self._chunks.folder / STATUS, json.dumps(status))


def _write(path: Location, text: str) -> None:
    with dispensable(str(path), "the next one will be tried"), writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_pool(folder: Location, limit: int) -> Any:
    """Start the pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    `limit`: bytes of its copies in shared memory. Call it in the driver: made inside a trial, the actor would die with
    the trial's resources.
    """
    return lasting_actor(SyntheticPool, folder, limit)
