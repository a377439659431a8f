"""What a trial costs that does nothing: time and memory of the driver, on one node and on several."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmark.rows import Measured
from benchmark.worlds import CPUS, digits, idle, prepare, run_all, scratch
from condkd_ray.cluster.connection.connect import connect, private
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import Outcome

MANY, FEW = 3000, 1000
WARM, TIMED = 40, 200
"""Trials of which the first only warm a cluster up."""


def driver() -> Iterator[Measured]:
    """One sweep of many such trials, between sweeps of a third of them."""
    prepared = prepare(digits(rounds=1))
    with connect(cpus=CPUS):
        _sweep(prepared, 10)
        before = _sweep(prepared, FEW)
        many = _sweep(prepared, MANY, look=(FEW, MANY))
        after = _sweep(prepared, FEW)
    grown = (many.bytes[MANY] - many.bytes[FEW]) / (MANY - FEW)
    idle_trial = "trial in which nothing is left to do"
    yield Measured(
        f"memory (USS) of the driver for each {idle_trial}, from {FEW} to {MANY}",
        [grown / 1e3],
        "kB",
        "<=",
        60.0,
        "Tune keeps every trial (38 kB), we its config and what it told.",
    )
    yield Measured(
        f"time of {MANY} such trials / {MANY // FEW} times {FEW}",
        [many.seconds / (MANY / FEW * one.seconds) for one in (before, after)],
        "x",
        "<=",
        2.0,
        "Tune looks through all its trials now and then.",
    )
    yield Measured("time of one such trial, of these", [1e3 * many.seconds / MANY], "ms")


def raylets() -> Iterator[Measured]:
    """The same trials on two kinds of cluster, by turns."""
    prepared, ratios = prepare(digits(rounds=1)), []
    for _ in range(2):
        seconds = []
        for nodes in ([1] * CPUS, [CPUS]):
            with _cluster(nodes):
                swept = _sweep(prepared, WARM + TIMED, look=(WARM, WARM + TIMED))
            seconds.append(swept.at[WARM + TIMED] - swept.at[WARM])
        ratios.append(seconds[1] / seconds[0])
    yield Measured(
        f"trials a second, {TIMED} in which nothing is left to do after {WARM} others: {CPUS} raylets of 1 CPU / 1 of "
        f"{CPUS}",
        ratios,
        "x",
        ">=",
        0.8,
        "Each raylet and its agents take their part of the same cores.",
    )


class _Swept:
    """Seconds from the end of a sweep's first trial, by when the cluster is warm, to that of its last.

    For the trials looked at, by number: when they ended, and the driver's own bytes then.
    """

    def __init__(self, look: tuple[int, ...]) -> None:
        self._look, self._ended, self._begin = look, 0, 0.0
        self.at: dict[int, float] = {}
        self.bytes: dict[int, int] = {}
        self.seconds = 0.0

    def ended(self, trial: Any, outcome: Outcome) -> None:
        """One more trial."""
        self._ended += 1
        self._begin = self._begin or time.monotonic()
        if self._ended in self._look:
            gc.collect()
            self.bytes[self._ended] = psutil.Process().memory_full_info().uss
            self.at[self._ended] = time.monotonic()
        self.seconds = time.monotonic() - self._begin


def _sweep(prepared: Prepared, count: int, look: tuple[int, ...] = ()) -> _Swept:
    with scratch() as folder:
        trials = idle(count, folder, prepared)
        swept = _Swept(look)
        run_all(trials, folder, swept.ended)
        return swept


@contextmanager
def _cluster(nodes: list[int]) -> Iterator[None]:
    """A cluster on this machine of nodes with so many CPUs each; this process is its driver."""
    with private():
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": nodes[0], "include_dashboard": False})
        try:
            for cpus in nodes[1:]:
                cluster.add_node(num_cpus=cpus)
            with connect(cluster.address):
                yield
        finally:
            cluster.shutdown()
