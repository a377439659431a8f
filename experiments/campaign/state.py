"""A claim with its stored rows: existing, missing and stale ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from campaign.claims import Claim
from campaign.halving import Ladder, climb
from campaign.rows import Row, is_result, read_rows, write_rows
from campaign.sources import split
from campaign.units import Trials, Unit, cpu_seconds, rows_of_unit, settled, trials_of
from condkd_ray.core.units import duration
from condkd_ray.trial.plan import NUMBERS, Plan


@dataclass(frozen=True)
class State:
    """A claim with all its trials and stored rows."""

    trials: Trials
    rows: Sequence[Row]

    @property
    def claim(self) -> Claim:
        """The claim itself."""
        return self.trials.claim

    @cached_property
    def fresh(self) -> list[Row]:
        """Rows that match the current claim."""
        return [row for row in self.rows if self.trials.fresh(row)]

    @cached_property
    def stale(self) -> list[Row]:
        """All other rows: another version of the numbers, or settings that the claim no longer states."""
        return [row for row in self.rows if not self.trials.fresh(row)]

    @cached_property
    def ladder(self) -> Ladder:
        """Progress of a choosing claim."""
        return climb(self.trials, self.fresh)

    @cached_property
    def units(self) -> Sequence[Unit]:
        """All units of a measuring claim, seed by seed; for a choosing claim, the units known so far."""
        if self.claim.choosing:
            return self.ladder.units
        return [self.trials.unit(cell, seed, [cell]) for seed in self.claim.seeds for cell in self.claim.cells]

    @cached_property
    def missing(self) -> list[Unit]:
        """Units without a complete set of rows."""
        if self.claim.choosing:
            return [*self.ladder.missing]
        return [unit for unit in self.units if rows_of_unit(unit, self.fresh) is None]

    def rows_of_cell(self, cell: str) -> list[Row]:
        """Return the rows that complete the units of a cell of a measuring claim, from one source (`sources.split`)."""
        return [row for rows in self._split(cell)[0] for row in rows]

    def left_out(self, cell: str) -> list[list[Row]]:
        """Return the rows of the cell's other completed units, which have another source."""
        return self._split(cell)[1]

    def _split(self, cell: str) -> tuple[list[list[Row]], list[list[Row]]]:
        found = [rows_of_unit(unit, self.fresh) for unit in self.units if unit.label == cell]
        return split([rows for rows in found if rows is not None])

    def with_rows(self, found: Sequence[Row]) -> "State":
        """Return the state with additional rows; stored rows have precedence."""
        together = State(self.trials, [*self.rows, *found])
        return State(self.trials, settled(together.units, together.fresh, self.stale))


def read_state(claim: Claim, results: Path) -> State:
    """Return a claim with its rows in the folder `results`. Raises `InputError` for an unreadable file."""
    rows = read_rows(rows_path(claim, results))
    return State(trials_of(claim), [row for row in rows if is_result(row.record, choosing=claim.choosing)])


def write_state(state: State, results: Path) -> None:
    """Store the rows, if there are any."""
    if state.rows:
        write_rows(rows_path(state.claim, results), state.rows)


def rows_path(claim: Claim, results: Path) -> Path:
    """Return the path of a claim's rows."""
    return results / f"{claim.name}.parquet"


def plans_of(units: Sequence[Unit]) -> list[Plan]:
    """Return the plans of units, each trial once."""
    return list({one.plan.config: one.plan for unit in units for one in unit.members.values()}.values())


def missing_words(units: Sequence[Unit]) -> str:
    """Return the number of trials in these units, with cells and seeds; "" without units."""
    seeds: dict[str, list[int]] = {}
    for unit in units:
        seeds.setdefault(unit.label, []).append(unit.seed)
    texts = [f"{label} (seeds {', '.join(map(str, found))})" for label, found in seeds.items()]
    count = len(plans_of(units))
    return f"{count} trial{'' if count == 1 else 's'}, of {', '.join(texts)}" if texts else ""


def stale_words(state: State) -> str:
    """Return a sentence on the number of stale rows and the reasons; "" if there are none."""
    older = sorted({row.record.numbers for row in state.stale if row.record.numbers != NUMBERS})
    others = sum(row.record.numbers == NUMBERS for row in state.stale)
    count = len(state.stale) - others
    parts = [f"{_rows(count)} of `numbers` {', '.join(map(str, older))} (now {NUMBERS})"] * bool(count)
    parts += [f"{_rows(others)} with settings that differ from the claim's"] * bool(others)
    return f"Stale and not shown: {'; '.join(parts)}." if parts else ""


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def listed(states: Sequence[State], *, gpus: bool) -> str:
    """Return a text with the existing, missing and stale rows of each claim, and the estimated time."""
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
    """Return the largest number of trials that a choosing claim can need."""
    sizes: dict[str, int] = {}
    for candidate in claim.cells.values():
        sizes[candidate.group] = sizes.get(candidate.group, 0) + 1
    total, begun = 0, 0
    for rung in claim.rungs:
        total += sum(sizes.values()) * (rung.seeds - begun)
        begun = rung.seeds
        sizes = {group: size if rung.keep is None else min(size, rung.keep) for group, size in sizes.items()}
    return total
