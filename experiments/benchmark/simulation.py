"""A simulation of many trials that call one pool and report to one driver, with the CPU times of the benchmark's rows.

A closed system: a trial computes a round, calls its pool, reports to its driver, and begins the next round. A pool and
a driver serve one call after another. Our choices: rounds last from 0.8 to 1.2 times their mean, uniformly; times of
service are exponential, so they vary more than measured ones; and all CPU time of a process counts as one thread's,
although Ray's own threads work beside Python's. Both make waits longer. Networks and the processes of Ray cost nothing.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.rows import read
from condkd_ray.core.method import require

SPREAD = 0.2
"""Largest difference of a round's length from its mean, as a part of the mean."""
ROUNDS, WARM = 24, 8
"""Rounds of each trial, on average, that are simulated, and those of them that do not count."""
HEADER = """\
| trials | a round | pools and drivers | rounds a second | wait, p50 | p99 | load of a pool | of a driver | full at |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True, kw_only=True)
class Wide:
    """A cluster of `trials`. Times are CPU seconds a round, except `round_seconds`."""

    trials: int
    round_seconds: float
    """Mean time that a trial needs for a round if it never waits."""
    pool_seconds: float
    driver_seconds: float = 0.0
    pools: int = 1
    """Number of pools, each with an equal part of the trials."""
    drivers: int = 1
    """Number of drivers, each with an equal part of the trials."""
    client_seconds: float = 0.0
    """Work of a trial on the `cores` before it calls its pool, if it shares them with pool and driver."""
    cores: float = math.inf
    """Cores of the machine of pools and drivers. Its running processes share them equally."""

    @property
    def full_at(self) -> float:
        """Number of trials at which the most loaded process has no time left: more of them only wait longer."""
        each = (self.pool_seconds / self.pools, self.driver_seconds / self.drivers)
        shared = (sum((self.pool_seconds, self.driver_seconds, self.client_seconds)) / self.cores,)
        alone = self.round_seconds + self.pool_seconds + self.driver_seconds + self.client_seconds
        return alone / max(*each, *shared)


class Simulated(NamedTuple):
    """The waits of all rounds in seconds, rounds a second, and the share of time that pools and drivers work."""

    waits: np.ndarray
    rate: float
    pool_load: float
    driver_load: float


class _Call(NamedTuple):
    """One part of a trial's way through a round: work for a server, or for the trial's own process if it is None."""

    server: int | None
    seconds: float


class _Machine:
    """Runs calls: each server works on one at a time, and all that run share the cores equally."""

    def __init__(self, cores: float, servers: int) -> None:
        self._cores = cores
        self._queues: list[deque[tuple[int, float]]] = [deque() for _ in range(servers)]
        # The work that a process has done that has run from the beginning; ordered by this value at their end.
        self._running: list[tuple[float, int, int | None, int]] = []
        self._done, self._count = 0.0, 0
        self.worked = [0.0] * servers

    @property
    def _rate(self) -> float:
        return min(1.0, self._cores / max(len(self._running), 1))

    def until_next(self) -> float:
        """Return the seconds until a call ends if no other one arrives."""
        return (self._running[0][0] - self._done) / self._rate if self._running else math.inf

    def advance(self, seconds: float) -> None:
        """Let all running processes work for `seconds`."""
        self._done += seconds * self._rate

    def call(self, trial: int, call: _Call) -> None:
        """Start the work of a trial, or add it to the queue of its server."""
        if call.server is None:
            return self._start(trial, call.seconds, None)
        queue = self._queues[call.server]
        queue.append((trial, call.seconds))
        if len(queue) == 1:
            self._start(trial, call.seconds, call.server)

    def end(self) -> int:
        """End the next call; return its trial."""
        _, _, server, trial = heappop(self._running)
        if server is not None:
            queue = self._queues[server]
            self.worked[server] += queue.popleft()[1]
            if queue:
                self._start(*queue[0], server)
        return trial

    def _start(self, trial: int, seconds: float, server: int | None) -> None:
        self._count += 1  # breaks ties
        heappush(self._running, (self._done + seconds, self._count, server, trial))


def simulate(wide: Wide, *, rounds: int = ROUNDS, warm: int = WARM, seed: int = 0) -> Simulated:
    """Simulate `rounds` rounds of each trial on average; the first `warm` of them do not count."""
    draws, host = random.Random(seed), _Machine(wide.cores, wide.pools + wide.drivers)
    timers: list[tuple[float, int]] = []
    begun, ways = [0.0] * wide.trials, [deque[_Call]() for _ in range(wide.trials)]
    for trial in range(wide.trials):
        heappush(timers, (draws.uniform(0.0, wide.round_seconds), trial))
    now, counted_from, worked_before, waits = 0.0, 0.0, list(host.worked), list[float]()

    def way(trial: int) -> deque[_Call]:
        pool, driver = trial % wide.pools, wide.pools + trial % wide.drivers
        parts = ((None, wide.client_seconds), (pool, wide.pool_seconds), (driver, wide.driver_seconds))
        return deque(_Call(server, draws.expovariate(1.0 / mean)) for server, mean in parts if mean > 0)

    while len(waits) < rounds * wide.trials:
        due = timers[0][0] if timers else math.inf
        ends = now + host.until_next()
        host.advance(min(due, ends) - now)
        now = min(due, ends)
        if due <= ends:
            trial = heappop(timers)[1]
            begun[trial], ways[trial] = now, way(trial)
        else:
            trial = host.end()
        if ways[trial]:
            host.call(trial, ways[trial].popleft())
            continue
        waits.append(now - begun[trial])
        heappush(timers, (now + wide.round_seconds * draws.uniform(1 - SPREAD, 1 + SPREAD), trial))
        if len(waits) == warm * wide.trials:
            counted_from, worked_before = now, list(host.worked)
    taken, kept = now - counted_from, np.array(waits[warm * wide.trials :])
    loads = [(after - before) / taken for after, before in zip(host.worked, worked_before, strict=True)]
    pools, drivers = loads[: wide.pools], loads[wide.pools :]
    return Simulated(kept, len(kept) / taken, float(np.mean(pools)), float(np.mean(drivers)))


def stored(path: Path, what: str) -> float:
    """Return the value of a row of the benchmark. Raises `InputError` if the file at `path` does not have the row."""
    found = [row["value"] for row in read(path) if row["what"] == what]
    accepted = "a row that `python experiments/benchmark_cluster.py` has stored"
    require(len(found) == 1, f"{path}: number of rows {what!r}", len(found), f"1: {accepted}")
    return found[0]


def table(clusters: Sequence[Wide]) -> str:
    """Simulate clusters and return a Markdown table with a line for each. Waits are in percent of a round."""
    return "\n".join([HEADER, *map(_line, clusters)]) + "\n"


def _line(wide: Wide) -> str:
    found = simulate(wide)
    waits = [100 * np.percentile(found.waits, percent) / wide.round_seconds for percent in (50, 99)]
    cells = [
        *(f"{wide.trials}", f"{wide.round_seconds:g} s", f"{wide.pools}", f"{found.rate:.0f}"),
        *(f"{wait:.1f} %" if wait < 10 else f"{wait:.0f} %" for wait in waits),
        *(f"{100 * load:.0f} %" for load in (found.pool_load, found.driver_load)),
        f"{wide.full_at:.0f} trials",
    ]
    return f"| {' | '.join(cells)} |"
