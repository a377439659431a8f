"""Costs of the driver with all its records: an ablation of many trials in which nothing is left to compute.

The trials run through `condkd_ray.runs.experiment.run`, as those of any experiment. Their outcomes and products are stored
before, as if an earlier driver had died before it wrote the records, so a worker only reports the rounds again.
"""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product as combinations
from pathlib import Path

import psutil
import torch

from benchmark.figures import Measured, digits, scratch
from condkd_ray.cluster.files import trial_file, trial_folder
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.view import AGREEMENT, NONE, Best, Goal, Silent, TrialsView
from condkd_ray.report.build import build
from condkd_ray.runs.experiment import checked, run
from condkd_ray.runs.options import Options
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.outcome import product_path, save_outcome
from condkd_ray.trial.plan import Plan, trial_hash
from condkd_ray.trial.run import local_store, run_trial

ROUNDS, SEEDS = 4, 10
"""Rounds of a trial, and seeds of each setting."""
WARM, EARLY, LATE, TRIALS = 2000, 4000, 8000, 10_000
"""Numbers of ended trials between which is measured; the last is the number of all trials."""
RATES, STEPS, WIDTHS = [0.02 * n for n in range(1, 11)], list(range(20, 30)), list(range(60, 70))
"""Values of the learning rate, the student's steps in a round and the generator's width: together 1000 settings."""
CHANGED = 0.05
"""Share of a trial's predictions that differ from those of the trial that was run."""


@dataclass(frozen=True)
class Mark:
    """The driver when a trial has ended."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """CPU time of the driver's process."""
    bytes: int
    """Memory of the driver's process alone (USS)."""


def mark() -> Mark:
    """Return the mark of this moment, after a garbage collection."""
    gc.collect()
    return Mark(time.monotonic(), time.process_time(), psutil.Process().memory_full_info().uss)


@dataclass
class Marks(Silent):
    """A view that takes marks after given numbers of ended trials."""

    at: tuple[int, ...]
    ended: int = 0
    taken: dict[int, Mark] = field(default_factory=dict)

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Return itself: it counts the trials."""
        return self

    def finished(
        self,
        key: str,
        label: str,
        status: str,
        score: float | None,
        *,
        group: str = "",
        leaves: Mapping[str, object] = NONE,
    ) -> None:
        """Count a trial, and take a mark."""
        self.ended += 1
        if self.ended in self.at:
            self.taken[self.ended] = mark()


def bookkeeping(trials: int = TRIALS, marks: tuple[int, int, int] = (WARM, EARLY, LATE)) -> Iterator[Measured]:
    """An ablation of 1000 settings with ten seeds each, on the digits, and its report."""
    with scratch() as folder:
        out, view = folder / "out", Marks((*marks, trials))
        options, workshop = Options(out=out), Workshop(None, device="cpu")
        plans = ablation(trials)
        leave_outcomes(plans, options, workshop, folder)
        result = run("benchmark", "What does a driver write, and what does it cost?", plans, options,
                     baseline=plans[0].arm, workshop=workshop, view=view)  # fmt: skip
        if not result.complete:
            raise KeyboardInterrupt
        files = [entry.stat() for entry in _files(out)]
        before = mark()
        build(out)
        after, page = mark(), (out / "report.html").stat().st_size
    warm, early, late, end = (view.taken[number] for number in view.at)
    first, _, later, last = view.at
    count = last - first
    what = f"a trial of an ablation with records, grids, event files and study, from {first} to {last} trials"
    yield Measured(f"driver's memory (USS) for {what}", [(end.bytes - warm.bytes) / count / 1e3], "kB", "<=", 60.0,
                   "Tune keeps 38 kB of each trial.")  # fmt: skip
    yield Measured(f"driver's CPU time for {what}", [1e3 * (end.cpu_seconds - warm.cpu_seconds) / count], "ms", "<=",
                   30.0, "Each round is a line of the journal, each trial a dozen files.")  # fmt: skip
    yield Measured("wall time of one of these", [1e3 * (end.seconds - warm.seconds) / count], "ms")
    rates = [(b.cpu_seconds - a.cpu_seconds) / n for a, b, n in ((warm, early, view.at[1] - first), (late, end, last - later))]
    yield Measured(f"CPU time of one of trials {later} to {last} / one of {first} to {view.at[1]}", [rates[1] / rates[0]], "x", "<=", 1.5)
    yield Measured("files of one of these", [len(files) / trials], "")
    yield Measured("bytes of these files", [sum(one.st_size for one in files) / trials / 1e3], "kB")
    yield Measured(f"report of {trials} trials, CPU time", [after.cpu_seconds - before.cpu_seconds], "s")
    yield Measured("page of these", [page / 1e6], "MB")


def ablation(trials: int) -> list[Plan]:
    """Return the plans of as many trials: each setting with all its seeds, then the next."""
    settings = [
        digits(
            rounds=ROUNDS,
            condensation={"name": "random_real", "ipc": 5},
            guidance={"name": "discriminator"},
            distiller={"steps": steps, "batch": 64, "lr": rate},
            inversion={"name": "fast", "steps": 5, "batch": 64, "width": width, "adv_weight": 0.0},
        )
        for rate, steps, width in combinations(RATES, STEPS, WIDTHS)
    ]
    plans = [
        Plan(f"lr{config.distiller.lr:.2f} steps{config.distiller.steps} width{config.inversion.width}", 5, seed, replace(config, seed=seed))
        for config in settings[: -(-trials // SEEDS)]
        for seed in range(SEEDS)
    ]
    return plans[:trials]


def leave_outcomes(plans: list[Plan], options: Options, workshop: Workshop, folder: Path) -> None:
    """Run one trial of the plans, and store its product, and its outcome with other numbers, for each of them."""
    planned = checked(plans, options, workshop)
    prepared = workshop.prepare_all([plan.config for plan in planned])
    first, kept = planned[0], folder / "product.safetensors"
    measured = run_trial(first.config, prepared[0], local_store(first.config, prepared[0], None), product=kept)
    for number, (plan, made) in enumerate(zip(planned, prepared, strict=True)):
        key = trial_hash(plan.config, made, plan.scope)
        save_outcome(varied(measured, number), trial_file(options.storage_root, key, "outcome"))
        os.link(kept, product_path(trial_folder(options.out, key)))


def varied(outcome: Outcome, number: int) -> Outcome:
    """Return the outcome as of another trial: every metric scaled by up to 5 %, and some other predictions."""
    draw = torch.Generator().manual_seed(number)

    def other(metrics: Metrics) -> Metrics:
        factors = (0.95 + 0.1 * torch.rand(len(metrics), generator=draw)).tolist()
        scaled = {name: value * factor for (name, value), factor in zip(metrics.items(), factors, strict=True)}
        return scaled | {"round": metrics["round"]} if "round" in metrics else scaled

    predictions = torch.tensor(outcome.predictions)
    changed = torch.rand(len(predictions), generator=draw) < CHANGED
    predictions = predictions.where(~changed, torch.randint(10, predictions.shape, generator=draw))
    history = [other(row) for row in outcome.history]
    return replace(outcome, metrics=other(outcome.metrics), history=history, predictions=predictions.tolist())


def _files(out: Path) -> Iterator[Path]:
    return (path for path in out.rglob("*") if path.is_file() and path.parts[-2] != "tune")
