"""Successive halving over seeds: computes from the rows which candidates are dropped after which rung.

All candidates run with the first seeds; the best of each group by mean validation score continue with more seeds.
All candidates have the same seeds, so that none wins by a lucky seed. This is our choice: a study of `condkd search`
gives all trials one seed, and its rungs are rounds instead of seeds.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from campaign.claims import Claim
from campaign.rows import Row, value
from campaign.sources import alike, source
from campaign.units import Trials, Unit, rows_of_unit


@dataclass(frozen=True)
class Ladder:
    """Progress of a choosing claim. `scores`: for each candidate, its rows by seed."""

    units: Sequence[Unit]
    scores: Mapping[str, Mapping[int, Row]]
    dropped: Mapping[str, int]
    """Candidates that were dropped, with the rung after which they were, counted from 1."""
    rung: int
    """The current rung, from 1; the number of rungs plus 1 if all are complete."""
    missing: Sequence[Unit] = ()
    """Units of the current rung that lack rows."""

    def mean(self, candidate: str) -> float:
        """Return the mean validation score; minus infinity if a trial failed, NaN without rows."""
        rows = self.scores.get(candidate, {}).values()
        return fmean(validation(row) for row in rows) if rows else math.nan


def validation(row: Row) -> float:
    """Return the validation score of a trial, accuracy or mean IoU; minus infinity if it failed."""
    found = value(row, row.score.val)
    return found if row.record.status == "finished" and math.isfinite(found) else -math.inf


def climb(trials: Trials, fresh: Sequence[Row]) -> Ladder:
    """Compute the progress from the rows; the last units are those of the current rung."""
    claim, remaining = trials.claim, list(trials.claim.cells)
    units: list[Unit] = []
    scores: dict[str, dict[int, Row]] = defaultdict(dict)
    dropped: dict[str, int] = {}
    begun = 0
    for number, rung in enumerate(claim.rungs, 1):
        new = [trials.unit(f"rung {number}", seed, remaining) for seed in claim.seeds[begun : rung.seeds]]
        units, begun = [*units, *new], rung.seeds
        answers = []
        for unit in new:
            # A candidate's mean is over all its seeds, so all its rows must have the same source.
            pooled = [
                row for row in fresh if all(alike(source([row]), source([one])) for one in scores[row.cell].values())
            ]
            answers.append(rows := rows_of_unit(unit, pooled))
            for row in rows or ():
                scores[row.cell][row.record.seed] = row
        missing = [unit for unit, rows in zip(new, answers, strict=True) if rows is None]
        if missing:
            return Ladder(units, scores, dropped, number, missing)
        if rung.keep is not None:
            stay = survivors(claim, remaining, scores, rung.keep)
            dropped |= {name: number for name in remaining if name not in stay}
            remaining = stay
    return Ladder(units, scores, dropped, len(claim.rungs) + 1)


def survivors(claim: Claim, remaining: Sequence[str], scores: Mapping[str, Mapping[int, Row]], keep: int) -> list[str]:
    """Return the `keep` best of each group by mean validation score, in the claim's order.

    Of equal candidates the earlier one is kept.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in remaining:
        groups[claim.cells[name].group].append(name)
    best: set[str] = set()
    for members in groups.values():
        ranked = sorted(members, key=lambda name: -fmean(validation(row) for row in scores[name].values()))
        best |= set(ranked[:keep])
    return [name for name in remaining if name in best]


def chosen(claim: Claim, ladder: Ladder) -> dict[str, str]:
    """Return the best candidate of each group, if the last rung is complete; groups that all failed are left out."""
    if ladder.rung <= len(claim.rungs):
        return {}
    best: dict[str, str] = {}
    for name in sorted((name for name in claim.cells if name not in ladder.dropped), key=lambda one: -ladder.mean(one)):
        if math.isfinite(ladder.mean(name)):
            best.setdefault(claim.cells[name].group, name)
    return best
