"""Objectives and constraints of a search, evaluated after each round and at the end of a trial. Never a test score."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.task import SCORES, Score, Task

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Direction = Literal["maximize", "minimize"]
QUALITY: dict[str, Direction] = {
    "proxy/agreement": "maximize",
    "proxy/kl": "minimize",
    **{Score(task).val: "maximize" for task in SCORES},
}
"""Metrics of the student's quality, on images other than the test images."""
OF_TASK: dict[str, Task] = {Score(task).val: task for task in SCORES}
"""The task of the data on which a metric is measured, of those that are not measured for every task."""
COST: dict[str, Direction] = dict.fromkeys(("time/wall_seconds", "time/cpu_seconds", "memory/bytes"), "minimize")
"""Metrics of a trial's cost: seconds of all rounds together, and bytes in its memory at the end."""
TEST = "selection by test accuracy or test mean IoU would make the reported value too high"
FORM = "NAME<=NUMBER or NAME>=NUMBER, such as memory/bytes<=2e6, with a NAME of"


@dataclass(frozen=True)
class Objective:
    """One or several metrics with their directions. The first is the quality by which trials are stopped early.

    Raises `InputError` for names that are not in `QUALITY` (the first) or `QUALITY` and `COST` (others), or that
    repeat.
    """

    names: tuple[str, ...] = ("proxy/agreement",)

    def __post_init__(self) -> None:
        first = self.names[0] if self.names else None
        tested = [name for name in self.names if "test" in name]
        require(not tested, "objective", " ".join(tested), f"{_listed(QUALITY)}; {TEST}")
        require(first in QUALITY, "the first objective", first, _listed(QUALITY))
        for name in self.names[1:]:
            require(name in QUALITY or name in COST, "objective", name, _listed(QUALITY | COST))
        require(len(set(self.names)) == len(self.names), "objective", " ".join(self.names), "each name once")

    @property
    def directions(self) -> list[Direction]:
        """Direction of each metric."""
        return [(QUALITY | COST)[name] for name in self.names]

    @property
    def several(self) -> bool:
        """True if there are several metrics, and so a Pareto front instead of a best trial."""
        return len(self.names) > 1

    def now(self, metrics: Metrics) -> float | None:
        """Return the quality in a round's metrics; None if the student was not measured in that round."""
        return metrics.get(self.names[0])

    def values(self, history: Sequence[Metrics]) -> list[float]:
        """Return the final values of a trial with these rounds; NaN for metrics that no round contains."""
        return [at_end(name, history) for name in self.names]


def check_task(names: Iterable[str], task: Task) -> None:
    """Raise `InputError` if one of these metrics of an objective or a constraint is not measured for the task."""
    known: dict[str, Direction] = {
        name: direction for name, direction in QUALITY.items() if OF_TASK.get(name, task) == task
    }
    for name in names:
        measured = name in COST or name in known
        require(measured, "objective or constraint", name, f"{_listed(known)} on data for {task}")


def at_end(name: str, history: Sequence[Metrics]) -> float:
    """Return a metric's value at the end of a trial with these rounds; NaN if no round has it.

    Seconds are summed over the rounds; for other metrics, it is the last value.
    """
    found = [metrics[name] for metrics in history if name in metrics]
    if not found:
        return math.nan
    return sum(found) if name.startswith("time/") else found[-1]


@dataclass(frozen=True)
class Constraint:
    """A limit parsed from `text`: at the end of a trial, `name` is at most `limit` or, if `least`, at least `limit`."""

    text: str
    name: str
    least: bool
    limit: float

    @property
    def rounded(self) -> str:
        """`text` as earlier versions stored it, with six digits of the limit."""
        return f"{self.name}{'>=' if self.least else '<='}{self.limit:g}"

    def excess(self, value: float) -> float:
        """Return the amount by which a value exceeds the limit; 0 or negative if the value satisfies it."""
        return self.limit - value if self.least else value - self.limit

    def allows(self, value: float) -> bool:
        """Return whether a value satisfies the limit; NaN, a value that was not measured, does not."""
        return self.excess(value) <= 0


def parse_constraints(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Parse the user's constraints.

    Raises `InputError` for another form or metric, or for two limits of one kind on one metric.
    """
    found = tuple(map(_parsed, texts))
    kinds = [(one.name, one.least) for one in found]
    require(len(set(kinds)) == len(kinds), "--constraint", " ".join(texts), "one limit of a kind for each name")
    return found


def _parsed(text: str) -> Constraint:
    names = ", ".join(QUALITY | COST)
    parts = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=|>=)\s*(\S+)\s*", text)
    name = parts[1] if parts else text
    require("test" not in name, "--constraint", text, f"{FORM} {names}; {TEST}")
    require(parts is not None and (name in QUALITY or name in COST), "--constraint", text, f"{FORM} {names}")
    assert parts is not None
    try:
        limit = float(parts[3])
    except ValueError:
        limit = math.nan
    require(math.isfinite(limit), "--constraint", text, f"{FORM} {names}")
    return Constraint(f"{name}{parts[2]}{_exact(limit)}", name, parts[2] == ">=", limit)


def _exact(limit: float) -> str:
    """Return a text that is parsed as exactly this number; six digits if they suffice, as in earlier studies."""
    short = f"{limit:g}"
    return short if float(short) == limit else repr(limit)


def excesses(constraints: Sequence[Constraint], history: Sequence[Metrics]) -> dict[str, float]:
    """Return the excess over each constraint, by its text, of a trial with these rounds; NaN for missing metrics."""
    return {one.text: one.excess(at_end(one.name, history)) for one in constraints}


def feasible(constraints: Sequence[Constraint], history: Sequence[Metrics]) -> bool:
    """Return whether a trial with these rounds satisfies all constraints."""
    return all(one.allows(at_end(one.name, history)) for one in constraints)


def known_excesses(
    constraints: Sequence[Constraint], trial: FrozenTrial, names: Sequence[str]
) -> dict[str, float] | None:
    """Return what `excesses` returns, for a trial of another study; None if a metric is missing.

    `names`: names of the objectives of that study.
    """
    known: Mapping[str, Any] = {**trial.user_attrs, **dict(zip(names, trial.values, strict=False))}
    if any(one.name not in known for one in constraints):
        return None
    return {one.text: one.excess(known[one.name]) for one in constraints}


def _listed(names: Mapping[str, Direction]) -> str:
    return ", ".join(f"{name} ({direction[:3]}.)" for name, direction in names.items())
