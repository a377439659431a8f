"""Which trials a claim needs, in units of pairing, and which stored rows answer them.

A unit of a measuring claim is a cell and a seed with all its arms; of a choosing claim a seed of a rung with all
candidates that are still in. It is answered by rows of one maker alone: see `rows.Maker`.
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
"""A cell and an arm."""
NO_PRIOR = Prior(weight=0.0, temperature=1.0)
"""With which every arm keeps the class prior that its host has."""


@dataclass(frozen=True)
class Planned:
    """A trial with the paths of its config relative, and the hash by which its rows are known."""

    plan: Plan
    claim_hash: str


@dataclass(frozen=True)
class Unit:
    """Trials that are compared, by cell and arm."""

    label: str
    seed: int
    members: Mapping[Member, Planned]


@dataclass(frozen=True)
class Trials:
    """All trials that a claim may need, by cell, arm and seed; an arm that is equal in several cells is one trial."""

    claim: Claim
    planned: Mapping[tuple[str, str, int], Planned]

    def unit(self, label: str, seed: int, cells: Sequence[str]) -> Unit:
        """The unit of these cells."""
        members = [(cell, name) for cell in cells for name in self.claim.arms_of(cell)]
        return Unit(label, seed, {member: self.planned[*member, seed] for member in members})

    def fresh(self, row: Row) -> bool:
        """Whether a row is what the claim asks for today, by the version of the numbers and by its config."""
        wanted = self.planned.get((*row.member, row.record.seed))
        return wanted is not None and row.record.numbers == NUMBERS and row.claim_hash == wanted.claim_hash


def trials_of(claim: Claim) -> Trials:
    """Plan a claim. Raises `InputError` for an arm that cannot be."""
    found: dict[tuple[str, str, int], Plan] = {}
    labels: dict[object, str] = {}
    for cell in claim.cells:
        for one in _arms(claim, cell):
            # The arm without condensed images is one trial for all cells of a host.
            label = labels.setdefault((one.arm, one.config), f"{one.arm} ({cell})")
            found[cell, one.arm, one.seed] = replace(one, arm=label)
    moved = spread(list(found.values()), claim.seeds, claim.teachers)
    named = zip(found, moved, strict=True)
    return Trials(claim, {key: Planned(plan, _claim_hash(plan)) for key, plan in named})


def _arms(claim: Claim, cell: str) -> list[Plan]:
    """The trials of a cell, each under the name of its arm. Raises `InputError`, naming the cell."""
    base, prior = claim.base(cell), claim.setting(cell).prior or NO_PRIOR
    try:
        return [arm(base, name, base.ipc, seed, prior=prior) for name in claim.arms_of(cell) for seed in claim.seeds]
    except InputError as error:
        raise InputError(f"claim {claim.name}, {cell}: {error}") from None


def _claim_hash(plan: Plan) -> str:
    return content_hash(plan.config, {"set": path} if (path := set_path(plan.config)) else {})


def answer(unit: Unit, rows: Sequence[Row]) -> list[Row] | None:
    """The rows that answer a unit: of the first maker that has all its trials; None where none has.

    `rows` are fresh ones, older ones first.
    """
    own = [row for row in rows if row.record.seed == unit.seed and row.member in unit.members]
    for group in by_maker(own):
        first = {row.member: row for row in reversed(sorted(group, key=lambda row: row.rank))}
        if first.keys() >= unit.members.keys():
            return [first[member] for member in unit.members]
    return None


def settled(units: Sequence[Unit], fresh: Sequence[Row], rest: Sequence[Row]) -> list[Row]:
    """The rows to be stored: of a unit that is answered, its answer alone; else all there are of it, `rest` too."""
    kept: list[Row] = []
    answered: set[tuple[str, str, int]] = set()
    for unit in units:
        found = answer(unit, fresh)
        if found is not None:
            kept += found
            answered |= {(*member, unit.seed) for member in unit.members}
    open_rows = [row for row in [*fresh, *rest] if (*row.member, row.record.seed) not in answered]
    return [*kept, *_once(open_rows)]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Of rows of the same trial by the same maker that of the lowest rank alone."""
    first: dict[object, Row] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        first.setdefault((*row.member, row.record.seed, row.maker, row.record.condensed_hash, row.claim_hash), row)
    return list(first.values())


def cpu_seconds(claim: Claim, rows: Sequence[Row]) -> float:
    """CPU seconds that a trial of the claim takes: the median of its rows, or what the claim states."""
    spent = [row.record.metrics["time/cpu_seconds"] for row in rows if "time/cpu_seconds" in row.record.metrics]
    return median(spent) if spent else claim.cpu_seconds
