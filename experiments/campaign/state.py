"""A claim with its stored rows: what there is, what is missing and what is stale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from campaign.claims import Claim
from campaign.halving import Ladder, climb
from campaign.rows import Row, read_rows, tells, write_rows
from campaign.sources import split
from campaign.units import Trials, Unit, answer, cpu_seconds, settled, trials_of
from condkd_ray.core.units import duration
from condkd_ray.trial.plan import NUMBERS, Plan


@dataclass(frozen=True)
class State:
    """A claim, all its trials, and all its stored rows."""

    trials: Trials
    rows: Sequence[Row]

    @property
    def claim(self) -> Claim:
        """What is claimed."""
        return self.trials.claim

    @cached_property
    def fresh(self) -> list[Row]:
        """Rows that the claim asks for today."""
        return [row for row in self.rows if self.trials.fresh(row)]

    @cached_property
    def stale(self) -> list[Row]:
        """All others: of another version of the numbers, or of settings that the claim no longer states."""
        return [row for row in self.rows if not self.trials.fresh(row)]

    @cached_property
    def ladder(self) -> Ladder:
        """Of a choosing claim, how far it has come."""
        return climb(self.trials, self.fresh)

    @cached_property
    def units(self) -> Sequence[Unit]:
        """All units of a measuring claim, seed by seed; of a choosing one those that are known so far."""
        if self.claim.choosing:
            return self.ladder.units
        return [self.trials.unit(cell, seed, [cell]) for seed in self.claim.seeds for cell in self.claim.cells]

    @cached_property
    def missing(self) -> list[Unit]:
        """Units without an answer."""
        if self.claim.choosing:
            return [*self.ladder.missing]
        return [unit for unit in self.units if answer(unit, self.fresh) is None]

    def answers(self, cell: str) -> list[Row]:
        """The rows that answer the units of a cell of a measuring claim, of one source: see `sources.split`."""
        return [row for rows in self._split(cell)[0] for row in rows]

    def left_out(self, cell: str) -> list[list[Row]]:
        """The other answered units of the cell, which are of another source."""
        return self._split(cell)[1]

    def _split(self, cell: str) -> tuple[list[list[Row]], list[list[Row]]]:
        found = [answer(unit, self.fresh) for unit in self.units if unit.label == cell]
        return split([rows for rows in found if rows is not None])

    def with_rows(self, found: Sequence[Row]) -> "State":
        """The state with rows that a run has left, those that were stored first."""
        together = State(self.trials, [*self.rows, *found])
        return State(self.trials, settled(together.units, together.fresh, self.stale))


def read_state(claim: Claim, results: Path) -> State:
    """A claim with the rows in the folder `results`. Raises `InputError`."""
    rows = read_rows(rows_path(claim, results))
    return State(trials_of(claim), [row for row in rows if tells(row.record, choosing=claim.choosing)])


def write_state(state: State, results: Path) -> None:
    """Store the rows."""
    if state.rows:
        write_rows(rows_path(state.claim, results), state.rows)


def rows_path(claim: Claim, results: Path) -> Path:
    """Where the rows of a claim lie."""
    return results / f"{claim.name}.parquet"


def plans_of(units: Sequence[Unit]) -> list[Plan]:
    """The plans of units, each trial once."""
    return list({one.plan.config: one.plan for unit in units for one in unit.members.values()}.values())


def missing_words(units: Sequence[Unit]) -> str:
    """How many trials these units have, and of which cells and seeds they are; empty without any."""
    seeds: dict[str, list[int]] = {}
    for unit in units:
        seeds.setdefault(unit.label, []).append(unit.seed)
    told = [f"{label} (seeds {', '.join(map(str, found))})" for label, found in seeds.items()]
    count = len(plans_of(units))
    return f"{count} trial{'' if count == 1 else 's'}, of {', '.join(told)}" if told else ""


def stale_words(state: State) -> str:
    """How many rows are stale and why, in a sentence; empty where none is."""
    older = sorted({row.record.numbers for row in state.stale if row.record.numbers != NUMBERS})
    others = sum(row.record.numbers == NUMBERS for row in state.stale)
    count = len(state.stale) - others
    parts = [f"{_rows(count)} of `numbers` {', '.join(map(str, older))}, where {NUMBERS} is today's"] * bool(count)
    parts += [f"{_rows(others)} of other settings than the claim states"] * bool(others)
    return f"Stale and not shown: {'; '.join(parts)}." if parts else ""


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def listed(states: Sequence[State], *, gpus: bool) -> str:
    """For each claim what there is, what is missing, what is stale, and what that will take."""
    return "\n".join(_listed(state, gpus) for state in states)


def _listed(state: State, gpus: bool) -> str:
    claim, plans = state.claim, plans_of(state.missing)
    there = len(state.units) - len(state.missing)
    seconds = len(plans) * cpu_seconds(claim, state.fresh)
    units = "units (seed of a rung)" if claim.choosing else "units (cell, seed)"
    rung = f"rung {min(state.ladder.rung, len(claim.rungs))} of {len(claim.rungs)}, " if claim.choosing else ""
    at_most = "" if not claim.choosing else f"; with all later rungs {_most(claim)} trials in all at most"
    lacking = missing_words(state.missing) or "nothing"
    lines = [
        f"{claim.name}: {claim.question}",
        f"  there: {rung}{there} of {len(state.units)} {units}, {len(state.fresh)} fresh rows",
        f"  missing: {lacking}; about {seconds:.0f} CPU s ({duration(seconds)}){at_most}",
        *[f"  {words}" for words in [stale_words(state)] if words],
        *["  needs a GPU: it runs with --gpus-per-trial"] * (claim.needs_gpu and not gpus),
    ]
    return "\n".join(lines)


def _most(claim: Claim) -> int:
    """Trials of a choosing claim whose groups all lose as few as they may."""
    sizes: dict[str, int] = {}
    for candidate in claim.cells.values():
        sizes[candidate.group] = sizes.get(candidate.group, 0) + 1
    total, begun = 0, 0
    for rung in claim.rungs:
        total += sum(sizes.values()) * (rung.seeds - begun)
        begun = rung.seeds
        sizes = {group: size if rung.keep is None else min(size, rung.keep) for group, size in sizes.items()}
    return total
