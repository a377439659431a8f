"""What a search optimises and the limits it keeps to, round by round and at a trial's end; never test accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from condkd_ray.core.method import Metrics, require

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Direction = Literal["maximize", "minimize"]
QUALITY: dict[str, Direction] = {
    "proxy/agreement": "maximize",
    "proxy/kl": "minimize",
    "student/val_accuracy": "maximize",
}
"""How good a student is, on images that are not the test images."""
COST: dict[str, Direction] = dict.fromkeys(("time/wall_seconds", "time/cpu_seconds", "memory/bytes"), "minimize")
"""What a trial takes: its seconds, all rounds together, and the bytes its memory holds at the end."""
TEST = "choosing by test accuracy makes the number that is then reported too good"
FORM = "NAME<=NUMBER or NAME>=NUMBER, such as memory/bytes<=2e6, with a NAME of"


@dataclass(frozen=True)
class Objective:
    """One name or several, each with its direction; the first is the quality by which trials are stopped early."""

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
        """Of each name."""
        return [(QUALITY | COST)[name] for name in self.names]

    @property
    def several(self) -> bool:
        """Whether there is a front rather than a best trial."""
        return len(self.names) > 1

    def now(self, metrics: Metrics) -> float | None:
        """The quality after a round; None where the student was not measured in it."""
        return metrics.get(self.names[0])

    def values(self, history: Sequence[Metrics]) -> list[float]:
        """Of a trial with these rounds; NaN for what none of them tells."""
        return [at_end(name, history) for name in self.names]


def at_end(name: str, history: Sequence[Metrics]) -> float:
    """What a trial of these rounds has come to: seconds are summed, of all else the last counts; NaN if never told."""
    told = [metrics[name] for metrics in history if name in metrics]
    if not told:
        return math.nan
    return sum(told) if name.startswith("time/") else told[-1]


@dataclass(frozen=True)
class Constraint:
    """The limit that `text` sets: `name` is at most `limit` at a trial's end, or at least, where `least`."""

    text: str
    name: str
    least: bool
    limit: float

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit; at most 0 where it keeps to it."""
        return self.limit - value if self.least else value - self.limit


def parse_constraints(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """The constraints that a user has written. Raises `InputError`."""
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
    return Constraint(f"{name}{parts[2]}{limit:g}", name, parts[2] == ">=", limit)


def excesses(constraints: Sequence[Constraint], history: Sequence[Metrics]) -> dict[str, float]:
    """Of a trial with these rounds, by the text of each constraint; NaN where nothing was told."""
    return {one.text: one.excess(at_end(one.name, history)) for one in constraints}


def feasible(constraints: Sequence[Constraint], history: Sequence[Metrics]) -> bool:
    """Whether a trial with these rounds has kept to all of them."""
    return all(value <= 0 for value in excesses(constraints, history).values())


def known_excesses(
    constraints: Sequence[Constraint], trial: FrozenTrial, names: Sequence[str]
) -> dict[str, float] | None:
    """As `excesses`, of a trial of another study whose values have these `names`; None where it lacks one of them."""
    told: Mapping[str, Any] = {**trial.user_attrs, **dict(zip(names, trial.values, strict=False))}
    if any(one.name not in told for one in constraints):
        return None
    return {one.text: one.excess(told[one.name]) for one in constraints}


def _listed(names: dict[str, Direction]) -> str:
    return ", ".join(f"{name} ({direction[:3]}.)" for name, direction in names.items())
