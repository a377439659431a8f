"""Whole sweeps: against plain processes, their start, what trials wait, what sharing saves, the driver's own cost."""

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import psutil
from chaos.chaos import TITLES, machine, titles

from benchmark.rows import Measured
from benchmark.worlds import CPUS, digits, idle, named, of_seeds, prepare, run_all, scratch, seconds
from condkd_ray.cluster.connection import connect
from condkd_ray.core import checkpoint as states
from condkd_ray.core.config import to_tree
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.plan import Scope
from condkd_ray.trial.run import CHECKPOINT_SECONDS, local_store

TRIAL_CPU_SECONDS, TRIALS = 42.0, 8
"""CPU seconds of a trial, at least 40; trials of the sweep against plain processes."""
STUDENTS = 12
"""Of one shared inversion."""
SHARED: dict[str, tuple[dict[str, Any], int]] = {
    "deep_inversion": ({"steps": 100, "batch": 128}, 15),
    "fast": ({"steps": 10, "batch": 128, "width": 64, "adv_weight": 0.0}, 20),
}
"""Inversions that are shared, and student steps a round."""
MANY, FEW = 3000, 1000
WARM, TIMED = 40, 200
"""Trials in which nothing is left to do: of the driver's sweeps; and of raylets', the first to warm a cluster up."""


def sweep() -> Iterator[Measured]:
    """A sweep and plain processes, by turns, each from the start of its processes to the end of the last."""
    config = _long_enough(digits())
    prepared, ratios, loops = prepare(config), [], []
    for _ in range(2):
        with scratch() as folder, connect(cpus=CPUS):
            trials = of_seeds(config, range(TRIALS), prepared)
            on_ray = seconds(partial(run_all, trials, folder))
        plain = _plain_seconds(config, [range(first, TRIALS, CPUS) for first in range(CPUS)])
        ratios.append(on_ray / plain)
        loops.append(TRIALS * _plain_seconds(config, [[0]]) / plain)
    work = f"{TRIALS} trials of {TRIAL_CPU_SECONDS:.0f} CPU s"
    what = f"sweep of {work} on {CPUS} cores / {CPUS} plain processes of {TRIALS // CPUS} trials each, wall time"
    why = "Driver, pool and Ray's own processes share the cores with the trials."
    yield Measured(what, ratios, "x", "<=", 1.08, why)
    yield Measured(f"{work} one after another on one core (one trial, times {TRIALS}) / the same", loops, "x")


def _long_enough(config: TrialConfig) -> TrialConfig:
    """As many rounds as take the CPU seconds wanted here."""
    config = replace(config, evaluate_every=1000)
    prepared = prepare(config)
    store, state = local_store(config, prepared, None), start(config, prepared)
    spent = [run_round(config, prepared, state, store)["time/cpu_seconds"] for _ in range(5)]
    return replace(config, rounds=math.ceil(TRIAL_CPU_SECONDS / median(spent[1:])))


def _plain_seconds(config: TrialConfig, parts: Sequence[Sequence[int]]) -> float:
    """Of plain processes at once, each with its part of the seeds, from when they have been started."""
    plain = [sys.executable, "-m", "benchmark.plain", json.dumps(to_tree(config))]
    folder = Path(__file__).parents[1]
    processes = [subprocess.Popen([*plain, *map(str, seeds)], cwd=folder) for seeds in parts]
    begin = time.monotonic()
    assert not any([process.wait() for process in processes])
    return time.monotonic() - begin


def startup() -> Iterator[Measured]:
    """Sweeps in which nothing is left to do."""
    prepared, taken = prepare(digits(rounds=1)), []
    for _ in range(3):
        with scratch() as folder:
            trials, begin = idle(CPUS, folder, prepared), time.monotonic()
            with connect(cpus=CPUS):
                run_all(trials, folder)
            taken.append(time.monotonic() - begin)
    what = "start-up: connect, first trial processes, shut-down"
    yield Measured(what, taken, "s", "<=", 20.0, "Every process of a trial imports PyTorch.")


def waiting() -> Iterator[Measured]:
    """Trials on the digits; of each process the first is left out, as it belongs to the start."""
    config = digits()
    prepared, shares, rounds = prepare(config), [], []
    with scratch() as folder, connect(cpus=CPUS):
        outcomes = run_all(of_seeds(config, range(3 * CPUS), prepared), folder)
    for outcome in outcomes[CPUS:]:
        trial = outcome.metrics["time/wall_seconds"]
        saved = _checkpoint_seconds(config, prepared) * (1 + trial // CHECKPOINT_SECONDS)
        shares.append(100 * (outcome.metrics["time/cluster_seconds"] + saved) / trial)
        rounds.append(trial / config.rounds)
    what = (
        "time a trial waits for Ray (report, checkpoint, append, refresh, next trial) / trial time, "
        f"{config.rounds} rounds of {median(rounds):.1f} s"
    )
    why = "A process waits for its next trial while Tune tidies up after the last."
    yield Measured(what, shares, "%", "<=", 3.0, why)


def _checkpoint_seconds(config: TrialConfig, prepared: Prepared) -> float:
    state = start(config, prepared)
    with scratch() as folder:
        return median(seconds(lambda: states.save(state, folder / "state.safetensors")) for _ in range(5))


def sharing() -> Iterator[Measured]:
    """Students that differ in their learning rates, once with an inversion each and once with one for all."""
    for name, (inversion, steps) in SHARED.items():
        parts = {"inversion": {"name": name} | inversion, "distiller": {"steps": steps, "batch": 128}}
        config = digits(**parts, rounds=4, evaluate_every=4)
        prepared, shares, ratios = prepare(config), [], []
        for _ in range(2):
            alone, ratio = _spent(config, prepared, "trial")
            shared, _ = _spent(config, prepared, "inversion")
            shares.append(shared / alone)
            ratios.append(ratio)
        r = fmean(ratios)
        what = (
            f"{STUDENTS} students on one shared inversion / {STUDENTS} unshared, CPU s of trials and pool, `{name}`, "
            f"r = inversion / distillation = {r:.1f}"
        )
        bound = 1.10 * (r + STUDENTS) / (STUDENTS * r + STUDENTS)
        why = "Testing the students and asking for rounds that others make costs the same however much is shared."
        yield Measured(what, shares, "x", "<=", bound, why)


def _spent(config: TrialConfig, prepared: Prepared, scope: Scope) -> tuple[float, float]:
    """CPU seconds of all rounds and, once there is one, of the pool; time of inversion over that of distillation."""
    pool: list[float] = []
    rates = [0.05 + 0.01 * number for number in range(STUDENTS)]
    configs = {f"lr{rate:.2f}": replace(config, distiller=replace(config.distiller, lr=rate)) for rate in rates}

    def look() -> None:
        pool.append(_cpu_seconds_of_pool())

    with scratch() as folder, connect(cpus=CPUS):
        outcomes = run_all(named(configs, prepared, scope), folder, on_round=look, on_outcome=look)
    cpu, inversion, distillation = (
        sum(outcome.metrics[f"time/{name}_seconds"] for outcome in outcomes)
        for name in ("cpu", "inversion", "distillation")
    )
    return cpu + max(pool) - pool[0], inversion / distillation


def _cpu_seconds_of_pool() -> float:
    """Of the actor that holds the pool, a process below this one."""
    total = 0.0
    for pid, title in titles(os.getpid()).items():
        with suppress(psutil.Error):
            if title.startswith(TITLES["pool"]):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
    return total


def driver() -> Iterator[Measured]:
    """One sweep of many trials in which nothing is left to do, between sweeps of a third of them."""
    prepared = prepare(digits(rounds=1))
    with connect(cpus=CPUS):
        _idle_sweep(prepared, 10)
        before = _idle_sweep(prepared, 1, FEW)
        first, few, many = _idle_sweep(prepared, 1, FEW, MANY)
        after = _idle_sweep(prepared, 1, FEW)
    taken, grown = many.seconds - first.seconds, (many.bytes - few.bytes) / (MANY - FEW)
    what = f"memory (USS) of the driver for each trial in which nothing is left to do, from {FEW} to {MANY}"
    why = "Tune keeps every trial (38 kB), we its config and what it told."
    yield Measured(what, [grown / 1e3], "kB", "<=", 60.0, why)
    ratios = [taken / (MANY / FEW * (end.seconds - begin.seconds)) for begin, end in (before, after)]
    what = f"time of {MANY} such trials / {MANY // FEW} times {FEW}"
    yield Measured(what, ratios, "x", "<=", 2.0, "Tune looks through all its trials now and then.")
    yield Measured("time of one such trial, of these", [1e3 * taken / MANY], "ms")


def raylets() -> Iterator[Measured]:
    """The same trials on two kinds of cluster, by turns."""
    prepared, ratios = prepare(digits(rounds=1)), []
    for _ in range(2):
        taken = []
        for head, nodes in ((1, CPUS - 1), (CPUS, 0)):
            with machine(nodes, head_cpus=head) as made, connect(made.address):
                begin, end = _idle_sweep(prepared, WARM, WARM + TIMED)
            taken.append(end.seconds - begin.seconds)
        ratios.append(taken[1] / taken[0])
    what = (
        f"trials a second, {TIMED} in which nothing is left to do after {WARM} others: {CPUS} raylets of 1 CPU / 1 of "
        f"{CPUS}"
    )
    yield Measured(what, ratios, "x", ">=", 0.8, "Each raylet and its agents take their part of the same cores.")


class _Mark(NamedTuple):
    """When a trial ended, and the driver's own bytes then."""

    seconds: float
    bytes: int


def _idle_sweep(prepared: Prepared, *marks: int) -> list[_Mark]:
    """Sweep as many trials as the last of `marks` says; what is marked are the ends of the trials of these numbers."""
    numbers, found = count(1), list[_Mark]()

    def look() -> None:
        if next(numbers) in marks:
            gc.collect()
            found.append(_Mark(time.monotonic(), psutil.Process().memory_full_info().uss))

    with scratch() as folder:
        run_all(idle(marks[-1], folder, prepared), folder, on_outcome=look)
    return found
