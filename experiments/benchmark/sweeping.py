"""Whole sweeps: against the same trials in plain processes, what starting takes, what trials wait."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmark.rows import Measured
from benchmark.worlds import CPUS, digits, idle, of_seeds, prepare, run_all, scratch
from condkd_ray.cluster.connection.connect import connect
from condkd_ray.core import checkpoint as states
from condkd_ray.core.config import to_tree
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import Outcome
from condkd_ray.trial.run import CHECKPOINT_SECONDS, local_store

TRIAL_CPU_SECONDS, TRIALS = 42.0, 8
"""CPU seconds of a trial, at least 40; trials of the sweep."""


def sweep() -> Iterator[Measured]:
    """A sweep and plain processes, by turns, each from the start of its processes to the end of the last."""
    config = _long_enough(digits())
    prepared = prepare(config)
    ratios, loops = [], []
    for _ in range(2):
        with connect(cpus=CPUS):
            on_ray = _swept(config, prepared, range(TRIALS))
        halves = [range(first, TRIALS, CPUS) for first in range(CPUS)]
        plain = _seconds_of([_start_plain(config, seeds) for seeds in halves])
        ratios.append(on_ray / plain)
        loops.append(TRIALS * _seconds_of([_start_plain(config, [0])]) / plain)
    trials = f"{TRIALS} trials of {TRIAL_CPU_SECONDS:.0f} CPU s"
    yield Measured(
        f"sweep of {trials} on {CPUS} cores / {CPUS} plain processes of {TRIALS // CPUS} trials each, wall time",
        ratios,
        "x",
        "<=",
        1.08,
        "Driver, pool and Ray's own processes share the cores with the trials.",
    )
    yield Measured(f"{trials} one after another on one core (one trial, times {TRIALS}) / the same", loops, "x")


def startup() -> Iterator[Measured]:
    """Sweeps in which nothing is left to do."""
    prepared, taken = prepare(digits(rounds=1)), []
    for _ in range(3):
        with scratch() as folder:
            trials, begin = idle(CPUS, folder, prepared), time.monotonic()
            with connect(cpus=CPUS):
                run_all(trials, folder, lambda trial, outcome: None)
            taken.append(time.monotonic() - begin)
    what = "start-up: connect, first trial processes, shut-down"
    yield Measured(what, taken, "s", "<=", 20.0, "Every process of a trial imports PyTorch.")


def waiting() -> Iterator[Measured]:
    """Trials on the digits; of each process the first is left out, as it belongs to the start."""
    config, outcomes = digits(), list[Outcome]()
    prepared = prepare(config)
    with scratch() as folder, connect(cpus=CPUS):
        trials = of_seeds(config, range(3 * CPUS), prepared)
        run_all(trials, folder, lambda trial, outcome: outcomes.append(outcome))
    shares, rounds = [], []
    for outcome in outcomes[CPUS:]:
        trial = outcome.metrics["time/wall_seconds"]
        saved = _checkpoint_seconds(config, prepared) * (1 + trial // CHECKPOINT_SECONDS)
        shares.append(100 * (outcome.metrics["time/cluster_seconds"] + saved) / trial)
        rounds.append(trial / config.rounds)
    yield Measured(
        "time a trial waits for Ray (report, checkpoint, append, refresh, next trial) / trial time, "
        f"{config.rounds} rounds of {median(rounds):.1f} s",
        shares,
        "%",
        "<=",
        3.0,
        "A process waits for its next trial while Tune tidies up after the last.",
    )


def _long_enough(config: TrialConfig) -> TrialConfig:
    """As many rounds as take the CPU seconds wanted here."""
    config = replace(config, evaluate_every=1000)
    prepared = prepare(config)
    store, state = local_store(config, prepared, None), start(config, prepared)
    spent = [run_round(config, prepared, state, store)["time/cpu_seconds"] for _ in range(5)]
    return replace(config, rounds=math.ceil(TRIAL_CPU_SECONDS / median(spent[1:])))


def _swept(config: TrialConfig, prepared: Prepared, seeds: range) -> float:
    with scratch() as folder:
        trials, begin = of_seeds(config, seeds, prepared), time.monotonic()
        run_all(trials, folder, lambda trial, outcome: None)
        return time.monotonic() - begin


def _start_plain(config: TrialConfig, seeds: range | list[int]) -> subprocess.Popen:
    tree = json.dumps(to_tree(config))
    command = [sys.executable, "-m", "benchmark.plain", tree, *map(str, seeds)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1])


def _seconds_of(processes: list[subprocess.Popen]) -> float:
    """From now to the end of the last."""
    begin = time.monotonic()
    assert not any([process.wait() for process in processes])
    return time.monotonic() - begin


def _checkpoint_seconds(config: TrialConfig, prepared: Prepared) -> float:
    state, taken = start(config, prepared), []
    with scratch() as folder:
        for _ in range(5):
            begin = time.monotonic()
            states.save(state, Path(folder) / "state.safetensors")
            taken.append(time.monotonic() - begin)
    return median(taken)
