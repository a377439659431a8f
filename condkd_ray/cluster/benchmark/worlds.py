"""What is measured on: trials on the bundled digits, and trials in which nothing is left to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from condkd_ray.cluster.driver.options import ClusterOptions
from condkd_ray.cluster.driver.sweep import sweep
from condkd_ray.cluster.worker.paths import outcome_path
from condkd_ray.core.config import from_tree
from condkd_ray.core.method import Metrics
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.outcome import Outcome, save_outcome
from condkd_ray.trial.plan import Plan, PlannedTrial

CPUS = 2
"""On which sweeps are measured."""


def digits(**changes: Any) -> TrialConfig:
    """Rounds as on the digits by default, of a second or so; the teacher's accuracy does not matter."""
    tree = {
        "data": {"name": "digits"},
        "teacher": {"network": {"name": "resnet", "depth": 8, "width": 16}, "training": {"epochs": 1}},
        "student": {"name": "resnet", "depth": 8, "width": 8},
        "inversion": {"name": "fast", "steps": 10, "batch": 128, "width": 64, "adv_weight": 0.0},
        "distiller": {"steps": 20, "batch": 128},
        "rounds": 12,
    }
    return from_tree(tree | changes, "benchmark")


def prepare(config: TrialConfig) -> Prepared:
    """What the trial needs, from the cache where it has been made before."""
    return Workshop(None, device="cpu").prepare(config)


def of_seeds(config: TrialConfig, seeds: Sequence[int], prepared: Prepared) -> list[PlannedTrial]:
    """A trial a seed."""
    plans = [Plan("", 0, seed, replace(config, seed=seed)) for seed in seeds]
    return [PlannedTrial(f"seed{plan.seed}", plan, prepared) for plan in plans]


def idle(count: int, folder: Path, prepared: Prepared) -> list[PlannedTrial]:
    """Trials whose outcomes lie in `folder` already: what they cost is what a trial costs that does nothing.

    Each is scheduled, opens its config, reads the outcome, reports one round, is fetched by the driver and cleared up.
    """
    done = Outcome(status="finished", metrics={}, history=[{"round": 1, "kd/loss": 0.0}], predictions=[], images=None)
    trials = of_seeds(digits(rounds=1), range(count), prepared)
    for trial in trials:
        save_outcome(done, outcome_path(folder, trial.key))
    return trials


@dataclass(frozen=True)
class Told:
    """A `TrialObserver` of two functions."""

    round: Callable[..., None]
    ended: Callable[..., None]


def run_all(
    trials: Sequence[PlannedTrial],
    folder: Path,
    heard: Callable[[PlannedTrial, Outcome], None],
    on_round: Callable[[PlannedTrial, Metrics], None] = lambda trial, metrics: None,
) -> None:
    """A sweep to its end. Raises `KeyboardInterrupt` where it was stopped, as what it has taken then says nothing."""
    if not sweep(trials, ClusterOptions(folder=folder), Told(on_round, heard)):
        raise KeyboardInterrupt


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with TemporaryDirectory(prefix=f"condkd-benchmark-{os.getpid()}-") as folder:
        yield Path(folder)
