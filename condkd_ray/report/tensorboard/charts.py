"""TensorBoard's custom scalars: arms side by side.

First, once the trials have ended, charts with a line and a band an arm; then for each telling scalar one with a line a
trial, families as categories. The Scalars tab shows the same figures among all the others.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import groups

Layout = dict[str, dict[str, tuple[str, list[str]]]]
"""By category and title, the kind of each chart, and its expressions: as torch's `custom_scalars` takes them."""
ARMS = "arms, over their seeds"
METRICS = ("student/test_accuracy", "student/val_accuracy", "proxy/agreement", "proxy/kl")
"""Of which an arm has a mean, lowest and highest over its seeds: scalars such as `mean/proxy/kl`."""
_WHOLE = ("kd", "inversion", "guidance", "diagnosis", "memory")
FAMILIES = ("student", "proxy", *_WHOLE)
"""In this order; of the first two the terms in `METRICS`, of the others all: losses, and where the images lie."""
BESIDE: Mapping[str, str] = {"guidance/perfect_accuracy": "guidance/accuracy"}
"""Scalars that stand in the chart of another, where there is that one: they are what it is to be compared with."""


def telling(tags: Iterable[str]) -> set[str]:
    """Those of `family/term` that get a chart."""
    whole = tuple(f"{family}/" for family in _WHOLE)
    return {tag for tag in tags if tag in METRICS or tag.startswith(whole)}


def layout(tags: Iterable[str], spread: Iterable[str] = ()) -> Layout:
    """The charts of `tags`: each expression is met by one of them, and a chart has one but for `BESIDE`.

    `spread`: metrics of which there are means and ranges over the seeds of an arm; their charts come first.
    """
    shown = sorted(telling(tags))
    # TensorBoard shows charts with bands from the last to the first, those with lines as they come.
    bands = [name for name in reversed(METRICS) if name in set(spread)]
    charts: Layout = {ARMS: {f"{name}, mean and range": ("Margin", _parts(name)) for name in bands}}
    for family in FAMILIES:
        own = [tag for tag in shown if tag.startswith(f"{family}/") and BESIDE.get(tag) not in shown]
        together = {tag: [tag, *(other for other in shown if BESIDE.get(other) == tag)] for tag in own}
        charts[family] = {tag: ("Multiline", [f"^{re.escape(t)}$" for t in same]) for tag, same in together.items()}
    return {title: members for title, members in charts.items() if members}


def over_seeds(records: Sequence[Record]) -> Iterator[tuple[Record, list[dict[str, float]]]]:
    """Of each arm and IPC with two finished trials or more: one of them, and rows of its rounds.

    A round counts where all of them measured it: a mean over other seeds than the round before would jump.
    """
    finished = [record for record in records if record.status == "finished"]
    for members in groups(finished).values():
        if len(members) < 2:
            continue
        by_round = [{int(row["round"]): row for row in record.history} for record in members]
        numbers = sorted(set.intersection(*(set(rows) for rows in by_round)))
        rows = [{"round": number} | _spread([rows[number] for rows in by_round]) for number in numbers]
        if any(len(row) > 1 for row in rows):
            yield members[0], rows


def _spread(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    found = {}
    for name in METRICS:
        values = [row.get(name, math.nan) for row in rows]
        if all(math.isfinite(value) for value in values):
            found |= dict(zip(_parts(name), (fmean(values), min(values), max(values)), strict=True))
    return found


def _parts(name: str) -> list[str]:
    """The scalars over the seeds that there are of a metric."""
    return [f"{part}/{name}" for part in ("mean", "lowest", "highest")]
