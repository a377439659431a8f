"""What a trial must keep to, to be a candidate at all: a limit of what it takes, or of its quality."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from condkd_ray.core.method import Metrics, require
from condkd_ray.study.objective import COST, QUALITY, TEST, at_end

FORM = "NAME<=NUMBER or NAME>=NUMBER, such as memory/bytes<=2e6, with a NAME of"


@dataclass(frozen=True)
class Constraint:
    """The limit `text` sets: `name` at a trial's end is at most, or at least, `limit`."""

    text: str
    name: str
    least: bool
    limit: float

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit; at most 0 where it keeps to it."""
        return self.limit - value if self.least else value - self.limit


def parse(texts: Sequence[str]) -> tuple[Constraint, ...]:
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


def known(constraints: Sequence[Constraint], trial: FrozenTrial, names: Sequence[str]) -> dict[str, float] | None:
    """Of a trial of another study whose values have these `names`, as far as it tells: None where it does not."""
    told: Mapping[str, Any] = {**trial.user_attrs, **dict(zip(names, trial.values, strict=False))}
    if any(one.name not in told for one in constraints):
        return None
    return {one.text: one.excess(told[one.name]) for one in constraints}
