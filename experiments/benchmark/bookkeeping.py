"""Costs of the driver with all its records: an ablation of many trials in which nothing is left to compute.

The trials run through `condkd_ray.runs.experiment.run`, as those of any experiment. Their outcomes and products are
stored before, as if an earlier driver had died before it wrote the records: a worker only reports the rounds again.
"""

import ctypes
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from itertools import product as combinations
from pathlib import Path
from typing import Any

import torch

from benchmark.figures import digits, scratch
from benchmark.rows import Measured
from condkd_ray.cluster.files import trial_file
from condkd_ray.core.environment import private_bytes
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.view import AGREEMENT, Best, Goal, Silent, TrialsView
from condkd_ray.report.build import build
from condkd_ray.report.page import PAGE
from condkd_ray.runs.experiment import checked, run
from condkd_ray.runs.options import Options
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.plan import Plan, trial_hash
from condkd_ray.trial.run import local_store, run_trial

ROUNDS, SEEDS = 4, 10
"""Rounds of a trial, and seeds of each setting."""
TRIALS, MARKS = 10_000, tuple(range(2000, 10_000, 1000))
"""Number of all trials, and the numbers of ended ones between which, and until the last, is measured."""
RATES, STEPS, WIDTHS = [0.02 * n for n in range(1, 11)], list(range(20, 30)), list(range(60, 70))
"""Values of the learning rate, the student's steps in a round and the generator's width: together 1000 settings."""
DIFFERENT = 97
"""Number of different outcomes; a prime, so that no two settings have the outcomes of equal seeds in common."""
CHANGED = 0.05
"""Share of a trial's predictions that differ from those of the trial that was run."""


@dataclass(frozen=True)
class Mark:
    """The driver at one moment."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """CPU time of the driver's process."""
    bytes: int
    """Private memory of the driver's process without mapped files, which count as private until a worker maps them."""
    taking: tuple[float, float]
    """Wall time and CPU time of taking the mark itself, in seconds."""

    def until(self, later: "Mark") -> float:
        """Return the CPU seconds from this moment to a later one."""
        return later.cpu_seconds - self.cpu_seconds - self.taking[1]

    def wall_until(self, later: "Mark") -> float:
        """Return the seconds from this moment to a later one."""
        return later.seconds - self.seconds - self.taking[0]


def mark() -> Mark:
    """Return the mark of this moment, with the memory after freed memory has been returned to the system."""
    now = time.monotonic(), time.process_time()
    gc.collect()
    # Only the GNU C library has `malloc_trim`.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    held = private_bytes()
    return Mark(*now, held, (time.monotonic() - now[0], time.process_time() - now[1]))


class _Marks(Silent):
    """A view that takes marks: `taken`, at the start of the trials (0), and after the given numbers of ended trials."""

    def __init__(self, at: Sequence[int]) -> None:
        self.at, self.taken, self._ended = tuple(at), dict[int, Mark](), 0

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        self.taken[0] = mark()
        return self

    def finished(self, *trial: Any, **rest: Any) -> None:
        self._ended += 1
        if self._ended in self.at:
            self.taken[self._ended] = mark()


def bookkeeping(trials: int = TRIALS, marks: Sequence[int] = MARKS) -> Iterator[Measured]:
    """An ablation of 1000 settings with ten seeds each, on the digits, and then its report.

    `trials`: the number of trials, all settings or the first ones. `marks`: as `MARKS`, for this number of trials.
    Raises `KeyboardInterrupt` if the run was stopped, because its numbers would be meaningless.
    """
    with scratch() as folder:
        out, view, workshop = folder / "out", _Marks((*marks, trials)), Workshop(None, device="cpu")
        options, plans = Options(out=out), ablation(trials)
        leave_outcomes(plans, options, workshop, folder)
        begin = mark()
        question = "What does a driver write, and what does it cost?"
        if not run("benchmark", question, plans, options, workshop=workshop, view=view).complete:
            raise KeyboardInterrupt
        sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        written = mark()
        build(out)
        built, page = mark(), (out / PAGE).stat().st_size
    warm, end = view.taken[marks[0]], view.taken[trials]
    pairs = [(view.taken[first], view.taken[last], last - first) for first, last in pairwise(view.at)]
    spent = [1e3 * first.until(last) / count for first, last, count in pairs]
    passed = [1e3 * first.wall_until(last) / count for first, last, count in pairs]
    each = f"trial of an ablation with records, image grids, event files and study, {ROUNDS} rounds"
    why = "Tune keeps 38 kB of each trial, the study its values."
    yield Measured(
        f"private memory of the driver at the end of {trials} trials / {trials}: {each}",
        [(end.bytes - begin.bytes) / trials / 1e3], "kB", "<=", 60.0, why,
    )  # fmt: skip
    grown = (end.bytes - warm.bytes) / (trials - marks[0]) / 1e3
    yield Measured(f"its growth for one such trial, from {marks[0]} to {trials}", [grown], "kB")
    what = f"CPU time of the driver for one such trial, in {len(pairs)} parts of one run, from {marks[0]} to {trials}"
    yield Measured(what, spent, "ms", "<=", 30.0, "A trial is 13 lines of the study's journal and five files.")
    yield Measured("wall time of one, in the same parts", passed, "ms")
    part = max(1, len(pairs) // 4)
    what = f"CPU time of one of the trials {view.at[-1 - part]} to {trials} / one of {marks[0]} to {view.at[part]}"
    why = "Tune looks through all its trials now and then."
    yield Measured(what, [sum(spent[-part:]) / sum(spent[:part])], "x", "<=", 1.3, why)
    yield Measured(f"CPU time of the driver before the trials, of {trials}", [begin.until(view.taken[0])], "s")
    yield Measured("files that one leaves", [len(sizes) / trials], "")
    yield Measured("bytes of them", [sum(sizes) / trials / 1e3], "kB")
    yield Measured(f"CPU time of the report of {trials} such trials", [written.until(built)], "s")
    yield Measured("page of this report", [page / 1e6], "MB")


def ablation(trials: int) -> list[Plan]:
    """Return the plans of the first `trials` trials of the ablation, sorted by setting."""
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
    names = [f"lr{rate:.2f} steps{steps} width{width}" for rate, steps, width in combinations(RATES, STEPS, WIDTHS)]
    plans = [
        Plan(name, config.ipc, seed, replace(config, seed=seed))
        for name, config in zip(names, settings, strict=True)
        for seed in range(SEEDS)
    ]
    return plans[:trials]


def leave_outcomes(plans: list[Plan], options: Options, workshop: Workshop, folder: Path) -> None:
    """Run one trial of the plans, and leave its product, and its outcome with other numbers, for each of them."""
    planned = checked(plans, options, workshop)
    prepared = workshop.prepare_all([plan.config for plan in planned])
    first, kept = planned[0], folder / "product.safetensors"
    measured = run_trial(first.config, prepared[0], local_store(first.config, prepared[0], None), product=kept)
    outcomes = [folder / f"outcome {number}.safetensors" for number in range(min(DIFFERENT, len(plans)))]
    for number, path in enumerate(outcomes):
        save_outcome(varied(measured, number), path)
    for plan, made, outcome in zip(planned, prepared, cycle(outcomes), strict=False):
        place = options.out / "trials" / trial_hash(plan.config, made, plan.scope)
        place.mkdir(parents=True)
        # Links, as ten thousand files that are synchronised with the disk one by one take minutes.
        os.link(outcome, str(trial_file(options.out, place.name, "outcome")))
        os.link(kept, place / kept.name)


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
