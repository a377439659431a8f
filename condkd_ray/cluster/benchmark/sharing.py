"""Students of one inversion: what it saves that they share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

import psutil

from condkd_ray.cluster.benchmark.rows import Measured
from condkd_ray.cluster.benchmark.worlds import CPUS, digits, prepare, run_all, scratch
from condkd_ray.cluster.connection.connect import connect
from condkd_ray.core.method import Metrics
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.identity import Scope
from condkd_ray.trial.outcome import Outcome
from condkd_ray.trial.plan import Plan, PlannedTrial

STUDENTS = 12
METHODS: dict[str, dict[str, Any]] = {
    "deep_inversion": {"name": "deep_inversion", "steps": 100, "batch": 128},
    "fast": {"name": "fast", "steps": 10, "batch": 128, "width": 64, "adv_weight": 0.0},
}
STEPS = {"deep_inversion": 15, "fast": 20}
"""Student steps a round."""


def sharing() -> Iterator[Measured]:
    """Students that differ in their learning rates, once with an inversion each and once with one for all."""
    for method, inversion in METHODS.items():
        steps = {"steps": STEPS[method], "batch": 128}
        config = digits(inversion=inversion, distiller=steps, rounds=4, evaluate_every=4)
        prepared, shares, ratios = prepare(config), [], []
        for _ in range(2):
            alone, ratio = _spent(config, prepared, "trial")
            shared, _ = _spent(config, prepared, "inversion")
            shares.append(shared / alone)
            ratios.append(ratio)
        r = fmean(ratios)
        yield Measured(
            f"{STUDENTS} students on one shared inversion / {STUDENTS} unshared, CPU s of trials and pool, `{method}`, "
            f"r = inversion / distillation = {r:.1f}",
            shares,
            "x",
            "<=",
            1.10 * (r + STUDENTS) / (STUDENTS * r + STUDENTS),
            "Testing the students and asking for rounds that others make costs the same however much is shared.",
        )


def _spent(config: TrialConfig, prepared: Prepared, scope: Scope) -> tuple[float, float]:
    """CPU seconds of all rounds and, once there is one, of the pool; time of inversion over that of distillation."""
    outcomes, pool = list[Outcome](), list[float]()
    rates = [0.05 + 0.01 * number for number in range(STUDENTS)]
    distillers = [replace(config.distiller, lr=rate) for rate in rates]
    trials = [
        PlannedTrial(f"lr{d.lr:.2f}", Plan(f"lr {d.lr:.2f}", 0, 0, replace(config, distiller=d), scope), prepared)
        for d in distillers
    ]

    def heard(trial: PlannedTrial, told: Metrics | Outcome) -> None:
        pool.append(_cpu_seconds_of_pool())
        outcomes.extend([told] if isinstance(told, Outcome) else [])

    with scratch() as folder, connect(cpus=CPUS):
        run_all(trials, folder, heard, on_round=heard)
    totals = {
        name: sum(outcome.metrics[f"time/{name}_seconds"] for outcome in outcomes)
        for name in ("cpu", "inversion", "distillation")
    }
    return totals["cpu"] + max(pool) - pool[0], totals["inversion"] / totals["distillation"]


def _cpu_seconds_of_pool() -> float:
    """Of the actor that holds the pool, a process below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "SyntheticPool" in process.name() or "SyntheticPool" in " ".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
    return total
