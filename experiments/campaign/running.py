"""Runs the missing trials of claims on this machine, and collects the rows of finished trials."""

import datetime
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from campaign.claims import Claim, located
from campaign.machines import Machine, folders, here
from campaign.rows import Row, is_result, metrics_of
from campaign.sources import set_digest
from campaign.state import State, missing_words, plans_of, read_state, write_state
from campaign.units import Planned, Trials, Unit
from condkd_ray.cluster.connection import connect
from condkd_ray.commands.console.exit_codes import log_line
from condkd_ray.core.config import to_tree
from condkd_ray.core.environment import default_device, usable_cpus
from condkd_ray.core.locks import in_turn
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Record, read_all_records, read_manifest, record_path
from condkd_ray.core.task import Score, is_dense
from condkd_ray.core.view import AGREEMENT, SILENT, Best, Goal, OnStep, TrialsView, View
from condkd_ray.methods.condensation import Imported
from condkd_ray.runs import experiment
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig, from_tree
from condkd_ray.trial.plan import NUMBERS, Plan

TURNS = 4
"""Smallest number of trials in a batch per concurrent trial: at the end of a batch, slots stay idle."""


@dataclass(frozen=True)
class Place:
    """Folders of data, records and rows, and the resources of trials."""

    options: Options
    data_root: Path | None
    results: Path
    seeds: Sequence[int] = ()
    """If not empty, only units with these seeds run."""
    cells: Sequence[str] = ()
    """If not empty, only units with one of these cells run."""
    view: View = SILENT

    @property
    def gpus(self) -> float:
        """GPUs per trial."""
        return self.options.gpus_per_trial

    @cached_property
    def machine(self) -> Machine:
        """The machine that trials run on."""
        return here(self.gpus, self.options.per_trial.threads)

    def folder(self, claim: Claim) -> Path:
        """Return the folder of the claim's records; it has a sub-folder for each kind of machine."""
        return self.options.out / claim.name

    def selects(self, unit: Unit) -> bool:
        """Return whether a unit is selected by `seeds` and `cells`."""
        cells = {cell for cell, _ in unit.members}
        return (not self.seeds or unit.seed in self.seeds) and (not self.cells or bool(cells & {*self.cells}))


@dataclass(frozen=True)
class ByValidation(View):
    """Wraps another view so that trials are ranked by their validation score and no test result is shown."""

    shown: View
    score: Score

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """Return the other view's progress bar."""
        return self.shown.bar(name)

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Return the other view's trials view, ranked by the validation score instead of by `goal`."""
        return self.shown.trials(total, Goal(self.score.val, decides=True, score=self.score), best)


def run(claims: Sequence[Claim], place: Place) -> RunResult:
    """Run the missing trials of the claims, one claim after another.

    Return the result of the first claim that stayed incomplete, or a result for all. Raises `InputError` for bad input
    before any work.
    """
    deadline = time.time() + place.options.budget_seconds
    workshop = Workshop(place.options.cache, device=default_device(), view=place.view)
    ready = [claim for claim in claims if place.gpus or not claim.needs_gpu]
    for claim in claims:
        if claim not in ready:
            log_line(f"{claim.name} needs a GPU, so it is left out without --gpus-per-trial")
    place.options.check()
    states = {claim.name: _collected(read_state(claim, place.results), place) for claim in ready}
    wanted = {name: [unit for unit in state.missing if place.selects(unit)] for name, state in states.items()}
    for plan in [plan for units in wanted.values() for plan in plans_of(units)]:
        _check(located(plan.config, place.data_root), place, workshop)
    if not any(wanted.values()):
        return RunResult(place.options.out, True, 0)
    failed = 0
    with connect("local", view=place.view):
        for claim in ready:
            result = _run_claim(states[claim.name], place, workshop, deadline)
            failed += result.failed
            if not result.complete:
                return replace(result, failed=failed)
    return RunResult(place.options.out, True, failed)


def _check(config: TrialConfig, place: Place, workshop: Workshop) -> None:
    """Raise `InputError` if a trial cannot run; errors about files below the data root name the flag."""
    try:
        workshop.check(config)
    except InputError as error:
        root = place.data_root and str(place.data_root.expanduser())
        raise InputError(f"--data-root {root}: {error}" if root and root in str(error) else str(error)) from None


def _run_claim(state: State, place: Place, workshop: Workshop, deadline: float) -> RunResult:
    """Run a claim in batches, because a choosing claim's later trials depend on the rows of earlier ones."""
    claim, failed, tried = state.claim, 0, set[tuple[str, int]]()
    while True:
        units = [unit for unit in state.missing if place.selects(unit) and (unit.label, unit.seed) not in tried]
        if not units:
            left = [unit for unit in state.missing if place.selects(unit)]
            if left:
                log_line(
                    f"{claim.name}: still missing after this run: {missing_words(left)}; the same command tries again"
                )
            return RunResult(place.folder(claim), True, failed or len(left))
        left = deadline - time.time()
        if left <= 0:
            return RunResult(place.folder(claim), False, failed, ("time",))
        batch = _batch(units, place)
        tried |= {(unit.label, unit.seed) for unit in batch}
        result, state = _run_batch(state, batch, place, workshop, left)
        failed += result.failed
        if not result.complete:
            return replace(result, failed=failed)


def _batch(units: Sequence[Unit], place: Place) -> list[Unit]:
    """Return the first units, all of a seed together, with enough trials to keep this machine busy."""
    each = place.options.cpus_per_trial or 1.0
    at_once = min(place.options.max_concurrent or usable_cpus(), max(1, int(usable_cpus() / each)))
    found: list[Unit] = []
    for unit in units:
        if found and unit.seed != found[-1].seed and len(plans_of(found)) >= TURNS * at_once:
            break
        found.append(unit)
    return found


def _run_batch(
    state: State, units: Sequence[Unit], place: Place, workshop: Workshop, seconds: float
) -> tuple[RunResult, State]:
    """Run the missing trials of the units; the rows of finished trials are stored in any case."""
    claim, folder = state.claim, place.machine.folder(place.folder(state.claim))
    lacking = _lacking(state, units, place, workshop)
    budget = f"{max(1, round(seconds))}s" if seconds != float("inf") else None
    options = replace(place.options, out=folder, time_budget=budget)
    view = ByValidation(place.view, claim.score) if claim.choosing else place.view
    if not lacking:
        return RunResult(folder, True, 0), state
    try:
        place.machine.write(place.folder(claim))
        result = experiment.run(claim.name, claim.question, lacking, options, workshop=workshop, view=view)
    finally:
        # Also after Ctrl-C, so that no finished trial is lost.
        state = _collected(state, place)
    return result, state


def _lacking(state: State, units: Sequence[Unit], place: Place, workshop: Workshop) -> list[Plan]:
    """Return the trials of the units that have no row with this machine's maker, with absolute paths.

    If all stored rows of a unit have another teacher, set or machine, a note is printed and the whole unit runs here.
    """
    plans: dict[TrialConfig, Plan] = {}
    for unit in units:
        stored = [row for row in state.fresh if row.record.seed == unit.seed and row.member in unit.members]
        makers = (
            {member: _maker(planned, place, workshop) for member, planned in unit.members.items()} if stored else {}
        )
        alike = {row.member for row in stored if makers[row.member] == (*row.maker, row.record.condensed_hash)}
        if stored and not alike:
            log_line(
                f"{state.claim.name}, {unit.label} seed {unit.seed}: its rows were made with another teacher, "
                f"condensed set or machine ({stored[0].machine}), so all its trials run again here"
            )
        for member, planned in unit.members.items():
            if member not in alike:
                plan = replace(planned.plan, config=located(planned.plan.config, place.data_root))
                plans.setdefault(plan.config, plan)
    return list(plans.values())


def _maker(planned: Planned, place: Place, workshop: Workshop) -> tuple[object, ...]:
    """Return the maker, and the condensed set's hash, that a row of this trial would have on this machine."""
    made: Prepared = workshop.prepare(located(planned.plan.config, place.data_root))
    hashes, machine = made.hashes, place.machine
    from_what = (NUMBERS, hashes["data"], hashes["teacher"], hashes["proxy"])
    return (*from_what, machine.kind, machine.threads, machine.torch, hashes["condensed"])


def _collected(state: State, place: Place) -> State:
    """Add the rows of all finished trials in the claim's folder to the state, store them, and return the state."""
    there = folders(place.folder(state.claim))
    if not there:
        return state
    with in_turn(place.results):
        # Read the rows again: another process may have stored some since.
        rows = [row for folder, machine in there.items() for row in rows_in(folder, state.trials, machine)]
        found = read_state(state.claim, place.results).with_rows(rows)
        write_state(found, place.results)
    return found


def rows_in(folder: Path, trials: Trials, machine: str) -> list[Row]:
    """Return a row for each trial in `folder` and each cell whose config it has; also diverged trials if choosing.

    Trials are matched by config, not by the name of the arm, so that cells can be renamed and reordered. Records of
    another version of the numbers, or with settings that the claim no longer states, match no cell.
    """
    claim = trials.claim
    records = [one for one in read_all_records(folder) if one.numbers == NUMBERS]
    places: dict[int, list[tuple[str, str, Planned]]] = {}
    for (cell, arm, seed), planned in trials.planned.items():
        places.setdefault(seed, []).append((cell, arm, planned))
    rows = []
    for record in [one for one in records if is_result(one, choosing=claim.choosing)]:
        stored = _config(record)
        if stored is None:
            continue
        written = record_path(folder, record.config_hash).stat().st_mtime
        files = stored.condensation.path if isinstance(stored.condensation, Imported) else None
        made_of = "" if files is None else set_digest(files, written)
        for cell, arm, planned in places.get(record.seed, ()):
            config = _portable(stored, planned.plan.config)
            if config is None:
                continue
            row = Row(
                claim=claim.name,
                cell=cell,
                claim_hash=planned.claim_hash,
                test_images=0 if claim.choosing else _test_images(record, claim, folder),
                machine=machine,
                date=datetime.datetime.fromtimestamp(written, datetime.UTC).date().isoformat(),
                set_digest=made_of,
                record=_stripped(record, claim, arm, config),
            )
            rows.append(row)
    return rows


def _test_images(record: Record, claim: Claim, folder: Path) -> int:
    """Return the number of test images; a record of segmentation has no prediction for each of them."""
    if is_dense(claim.score.task):
        return int(read_manifest(folder).dataset["test_size"])
    return len(record.outcome.predictions)


def _stripped(record: Record, claim: Claim, arm: str, config: TrialConfig) -> Record:
    """Return the part of a record that is stored."""
    metrics = metrics_of(record, choosing=claim.choosing)
    outcome = replace(record.outcome, history=[], predictions=[], held={}, metrics=metrics, node="")
    return replace(record, experiment=claim.name, arm=arm, config=to_tree(config), outcome=outcome)


def _config(record: Record) -> TrialConfig | None:
    """Return the config of a record; None if it has a field that no longer exists."""
    try:
        return from_tree(record.config)
    except InputError:
        return None


def _portable(config: TrialConfig, stated: TrialConfig) -> TrialConfig | None:
    """Return a record's config with the relative paths of the `stated` config; None if the two configs differ."""
    config = replace(config, data=replace(config.data, root=stated.data.root))
    if isinstance(config.condensation, Imported) and isinstance(stated.condensation, Imported):
        below = stated.condensation.path
        if config.condensation.path.parts[-len(below.parts) :] == below.parts:
            config = replace(config, condensation=replace(config.condensation, path=below))
    settled = stated if stated.precision is not None else replace(stated, precision=config.precision)
    return config if config == settled else None
