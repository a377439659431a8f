"""How the trials of a search came to their objective, round by round, and what they forgot on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condkd_ray.core.records import Record
from condkd_ray.report.figures.search import COLOURS, rounds_plot
from condkd_ray.report.page.elements import Element, Rows, Section
from condkd_ray.report.page.images import vector
from condkd_ray.report.tables.table import Table

TITLE = "Over the rounds"
MOST = 8
"""Of the best trials in the table."""
_LEGEND = (
    "Forgetting: how much better the best round was than the last, in the objective. Test accuracy is not measured "
    "in the rounds of a search, so that nothing can follow it."
)
Curve = tuple[list[int], list[float]]
"""Rounds, and the objective in each."""


def section(ranked: Sequence[Record], records: Sequence[Record], objective: str, direction: str) -> Section:
    """Lines of all trials, those `ranked` first in colours; and a table of these. `direction`: as Optuna calls it."""
    others = [one for one in records if one.status in ("pruned", "running")]
    curves = {one.arm: curve for one in [*ranked, *others] if len((curve := _curve(one, objective))[0]) > 1}
    if not curves:
        return Section(TITLE, [])
    named = sum(one.arm in curves for one in ranked[: len(COLOURS)])
    drawn = vector(rounds_plot(curves, objective, named), f"{objective} over the rounds")
    rows = [_row(one.arm, *curves[one.arm], direction) for one in ranked[:MOST] if one.arm in curves]
    table = Table("Rounds", ["trial", "last", "best", "in round", "forgetting"], rows, _LEGEND, keys=1)
    elements: list[Element] = [*drawn, *([Rows(table)] if rows else [])]
    return Section(TITLE, elements)


def _curve(record: Record, objective: str) -> Curve:
    """Times are those of a round: what counts of them is the sum, which is no curve."""
    told = [] if objective.startswith("time/") else record.history
    known = [(int(row["round"]), row[objective]) for row in told if math.isfinite(row.get(objective, math.nan))]
    return [number for number, _ in known], [value for _, value in known]


def _row(trial: str, rounds: list[int], values: list[float], direction: str) -> list[str]:
    best = (min if direction == "minimize" else max)(values)
    lost = abs(best - values[-1])
    numbers = [f"{values[-1]:.4f}", f"{best:.4f}", str(rounds[values.index(best)]), f"{lost:.4f}"]
    return [trial.removeprefix("trial "), *numbers]
