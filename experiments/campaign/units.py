"""Trials that a claim needs, in units for pairing, and the stored rows that complete them.

A unit of a measuring claim is a cell and a seed with all arms; of a choosing claim, a seed of a rung with all remaining
candidates. All rows of a unit must have the same maker: see `rows.Maker`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from campaign.claims import Claim, set_path
from campaign.rows import Row, by_maker
from condkd_ray.core.config import content_hash
from condkd_ray.core.method import InputError
from condkd_ray.runs.arms import Prior, arm, spread
from condkd_ray.trial.plan import NUMBERS, Plan

Member = tuple[str, str]
"""Cell and arm."""
NO_PRIOR = Prior(weight=0.0, temperature=1.0)
"""Prior with which every arm keeps its host's class prior."""


@dataclass(frozen=True)
class Planned:
    """A trial whose config has relative paths, and the hash that its rows carry."""

    plan: Plan
    claim_hash: str


@dataclass(frozen=True)
class Unit:
    """Trials that are compared with each other, by cell and arm."""

    label: str
    seed: int
    members: Mapping[Member, Planned]


@dataclass(frozen=True)
class Trials:
    """All trials that a claim may need, by cell, arm and seed; an arm that is equal in several cells is one trial."""

    claim: Claim
    planned: Mapping[tuple[str, str, int], Planned]

    def unit(self, label: str, seed: int, cells: Sequence[str]) -> Unit:
        """Return the unit of these cells."""
        members = [(cell, name) for cell in cells for name in self.claim.arms_of(cell)]
        return Unit(label, seed, {member: self.planned[*member, seed] for member in members})

    def fresh(self, row: Row) -> bool:
        """Return whether a row matches the current claim, by the version of the numbers and by its config."""
        wanted = self.planned.get((*row.member, row.record.seed))
        return wanted is not None and row.record.numbers == NUMBERS and row.claim_hash == wanted.claim_hash


def trials_of(claim: Claim) -> Trials:
    """Plan a claim's trials. Raises `InputError` for an arm that cannot be planned."""
    found: dict[tuple[str, str, int], Plan] = {}
    labels: dict[object, str] = {}
    for cell in claim.cells:
        for one in _arms(claim, cell):
            # The arm without condensed images is one trial, common to all cells of a host.
            label = labels.setdefault((one.arm, one.config), f"{one.arm} ({cell})")
            found[cell, one.arm, one.seed] = replace(one, arm=label)
    moved = spread(list(found.values()), claim.seeds, claim.teachers)
    named = zip(found, moved, strict=True)
    return Trials(claim, {key: Planned(plan, _claim_hash(plan)) for key, plan in named})


def _arms(claim: Claim, cell: str) -> list[Plan]:
    """Return the trials of a cell, each labelled with its arm. Raises `InputError`, naming the cell."""
    base, prior = claim.base(cell), claim.setting(cell).prior or NO_PRIOR
    try:
        return [arm(base, name, base.ipc, seed, prior=prior) for name in claim.arms_of(cell) for seed in claim.seeds]
    except InputError as error:
        raise InputError(f"claim {claim.name}, {cell}: {error}") from None


def _claim_hash(plan: Plan) -> str:
    return content_hash(plan.config, {"set": path} if (path := set_path(plan.config)) else {})


def rows_of_unit(unit: Unit, rows: Sequence[Row]) -> list[Row] | None:
    """Return the rows that complete a unit, from the first maker that has all its trials; None if no maker has.

    `rows`: fresh rows, older ones first.
    """
    own = [row for row in rows if row.record.seed == unit.seed and row.member in unit.members]
    for group in by_maker(own):
        first = {row.member: row for row in reversed(sorted(group, key=lambda row: row.rank))}
        if first.keys() >= unit.members.keys():
            return [first[member] for member in unit.members]
    return None


def settled(units: Sequence[Unit], fresh: Sequence[Row], rest: Sequence[Row]) -> list[Row]:
    """Return the rows to store: for a completed unit, its rows alone; for others, all their rows, also from `rest`."""
    kept: list[Row] = []
    completed: set[tuple[str, str, int]] = set()
    for unit in units:
        found = rows_of_unit(unit, fresh)
        if found is not None:
            kept += found
            completed |= {(*member, unit.seed) for member in unit.members}
    open_rows = [row for row in [*fresh, *rest] if (*row.member, row.record.seed) not in completed]
    return [*kept, *_once(open_rows)]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Return one row per trial and maker, the one with the lowest rank."""
    first: dict[object, Row] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        first.setdefault((*row.member, row.record.seed, row.maker, row.record.condensed_hash, row.claim_hash), row)
    return list(first.values())


def cpu_seconds(claim: Claim, rows: Sequence[Row]) -> float:
    """Return the CPU seconds of a trial: the median of the claim's rows, or its stated value without rows."""
    spent = [row.record.metrics["time/cpu_seconds"] for row in rows if "time/cpu_seconds" in row.record.metrics]
    return median(spent) if spent else claim.cpu_seconds
