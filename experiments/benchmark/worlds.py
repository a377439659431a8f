"""What is measured on: trials on the bundled digits, and trials in which nothing is left to do; and sweeps of them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from condkd_ray.cluster.files import trial_file
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import sweep
from condkd_ray.core.records import Outcome
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig, from_tree
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.plan import Plan, PlannedTrial, Scope

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


def named(configs: Mapping[str, TrialConfig], prepared: Prepared, scope: Scope = "trial") -> list[PlannedTrial]:
    """A trial a config, by its name."""
    return [PlannedTrial(name, Plan(name, 0, config.seed, config, scope), prepared) for name, config in configs.items()]


def of_seeds(config: TrialConfig, seeds: Sequence[int], prepared: Prepared) -> list[PlannedTrial]:
    """A trial a seed."""
    return named({f"seed{seed}": replace(config, seed=seed) for seed in seeds}, prepared)


def idle(count: int, folder: Path, prepared: Prepared) -> list[PlannedTrial]:
    """Trials whose outcomes lie in `folder` already: what they cost is what a trial costs that does nothing.

    Each is scheduled, opens its config, reads the outcome, reports one round, is fetched by the driver and cleared up.
    """
    done = Outcome(status="finished", metrics={}, history=[{"round": 1, "kd/loss": 0.0}], predictions=[], images=None)
    trials = of_seeds(digits(rounds=1), range(count), prepared)
    for trial in trials:
        save_outcome(done, trial_file(folder, trial.key, "outcome"))
    return trials


@dataclass(frozen=True)
class Told:
    """A `TrialObserver` of two functions."""

    round: Callable[..., None]
    ended: Callable[..., None]


def run_all(
    trials: Sequence[PlannedTrial],
    folder: Path,
    *,
    on_round: Callable[[], None] = lambda: None,
    on_outcome: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """What came of a sweep, in the order in which trials ended.

    Raises `KeyboardInterrupt` where the sweep was stopped, as what it has taken then says nothing.
    """
    outcomes: list[Outcome] = []

    def ended(trial: PlannedTrial, outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_outcome()

    if not sweep(trials, ClusterOptions(folder=folder), Told(lambda trial, metrics: on_round(), ended)):
        raise KeyboardInterrupt
    return outcomes


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with TemporaryDirectory(prefix=f"condkd-benchmark-{os.getpid()}-") as folder:
        yield Path(folder)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> float:
    """That `call` takes."""
    begin = clock()
    call()
    return clock() - begin
