"""Successive halving over seeds: who is dropped where, as a function of the rows.

All candidates run on the first seeds; the best of each group by mean validation accuracy go on to more seeds. The
seeds are common to all, so that a candidate wins by no luck of its seed (our choice; a study under `condkd search`
gives all its trials one seed, so that its rungs are rounds and not seeds).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from campaign.claims import Claim
from campaign.rows import Row, value
from campaign.sources import alike, source
from campaign.units import Trials, Unit, answer

METRIC = "student/val_accuracy"


@dataclass(frozen=True)
class Ladder:
    """How far a choosing claim has come. `scores`: of each candidate, the answering rows by seed."""

    units: Sequence[Unit]
    scores: Mapping[str, Mapping[int, Row]]
    dropped: Mapping[str, int]
    """After which rung, counted from 1, a candidate was dropped."""
    rung: int
    """The rung that is being run, from 1; one more than there are where all have ended."""
    missing: Sequence[Unit] = ()
    """Units of that rung without an answer."""

    def mean(self, candidate: str) -> float:
        """Mean validation accuracy; minus infinity for one that failed, NaN for one without any row."""
        rows = self.scores.get(candidate, {}).values()
        return fmean(accuracy(row) for row in rows) if rows else math.nan


def accuracy(row: Row) -> float:
    """Validation accuracy of a trial; minus infinity where it failed."""
    found = value(row, METRIC)
    return found if row.record.status == "finished" and math.isfinite(found) else -math.inf


def climb(trials: Trials, fresh: Sequence[Row]) -> Ladder:
    """Where the halving stands by these rows: its units so far, the last of them those of the current rung."""
    claim, alive = trials.claim, list(trials.claim.cells)
    units: list[Unit] = []
    scores: dict[str, dict[int, Row]] = defaultdict(dict)
    dropped: dict[str, int] = {}
    begun = 0
    for number, rung in enumerate(claim.rungs, 1):
        new = [trials.unit(f"rung {number}", seed, alive) for seed in claim.seeds[begun : rung.seeds]]
        units, begun = [*units, *new], rung.seeds
        answers = []
        for unit in new:
            # The seeds of a candidate are pooled, so that all must be of one source.
            pooled = [
                row for row in fresh if all(alike(source([row]), source([one])) for one in scores[row.cell].values())
            ]
            answers.append(rows := answer(unit, pooled))
            for row in rows or ():
                scores[row.cell][row.record.seed] = row
        missing = [unit for unit, rows in zip(new, answers, strict=True) if rows is None]
        if missing:
            return Ladder(units, scores, dropped, number, missing)
        if rung.keep is not None:
            stay = survivors(claim, alive, scores, rung.keep)
            dropped |= {name: number for name in alive if name not in stay}
            alive = stay
    return Ladder(units, scores, dropped, len(claim.rungs) + 1)


def survivors(claim: Claim, alive: Sequence[str], scores: Mapping[str, Mapping[int, Row]], keep: int) -> list[str]:
    """The `keep` best of each group by mean validation accuracy, in the claim's order; ties go to the earlier one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in alive:
        groups[claim.cells[name].group].append(name)
    best: set[str] = set()
    for members in groups.values():
        ranked = sorted(members, key=lambda name: -fmean(accuracy(row) for row in scores[name].values()))
        best |= set(ranked[:keep])
    return [name for name in alive if name in best]


def chosen(claim: Claim, ladder: Ladder) -> dict[str, str]:
    """The best candidate of each group; none before the last rung has ended, nor where all of a group failed."""
    if ladder.rung <= len(claim.rungs):
        return {}
    best: dict[str, str] = {}
    for name in sorted((name for name in claim.cells if name not in ladder.dropped), key=lambda one: -ladder.mean(one)):
        if math.isfinite(ladder.mean(name)):
            best.setdefault(claim.cells[name].group, name)
    return best
