"""An arm as one line: the mean over its seeds and the range between them, round by round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import groups

METRICS = ("student/test_accuracy", "student/val_accuracy", "proxy/agreement", "proxy/kl")
PARTS = ("mean", "lowest", "highest")
"""Families of scalars; of each there is one a metric, such as `mean/proxy/kl`."""


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
            three = fmean(values), min(values), max(values)
            found |= {f"{part}/{name}": value for part, value in zip(PARTS, three, strict=True)}
    return found
