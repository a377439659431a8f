"""What is measured on: trials on the bundled digits, and trials in which nothing is left to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from condkd_ray.cluster.driver.options import Terms
from condkd_ray.cluster.driver.sweep import sweep
from condkd_ray.cluster.worker.trainable import outcome_path
from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.core.config import from_tree
from condkd_ray.core.method import Metrics
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.outcome import Outcome, save_outcome

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


def of_seeds(config: TrialConfig, seeds: Sequence[int], prepared: Prepared) -> list[Trial]:
    """A trial a seed."""
    return [Trial(f"seed{seed}", f"seed {seed}", replace(config, seed=seed), prepared) for seed in seeds]


def idle(count: int, folder: Path, prepared: Prepared) -> list[Trial]:
    """Trials whose outcomes lie in `folder` already: what they cost is what a trial costs that does nothing.

    Each is scheduled, opens its config, reads the outcome, reports one round, is fetched by the driver and cleared up.
    """
    done = Outcome(status="finished", metrics={}, history=[{"round": 1, "kd/loss": 0.0}], predictions=[], images=None)
    trials = of_seeds(digits(rounds=1), range(count), prepared)
    for trial in trials:
        save_outcome(done, outcome_path(folder, trial.key))
    return trials


def run_all(
    trials: Sequence[Trial],
    folder: Path,
    heard: Callable[[Trial, Outcome], None],
    on_round: Callable[[Trial, Metrics], None] = lambda trial, metrics: None,
) -> None:
    """A sweep to its end. Raises `KeyboardInterrupt` where it was stopped, as what it has taken then says nothing."""
    if not sweep(trials, Terms(folder=folder), on_round=on_round, on_outcome=heard):
        raise KeyboardInterrupt


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with TemporaryDirectory(prefix=f"condkd-benchmark-{os.getpid()}-") as folder:
        yield Path(folder)
