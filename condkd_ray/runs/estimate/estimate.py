"""What is left of a run will take: time, memory, disk; and that as text. Nothing is trained for good, or written.

What finished trials took is in their records. Others are tried for a few rounds in this process, one of each arm, with
a stand-in for a teacher or a condensed set that does not exist yet.
"""

from __future__ import annotations

import contextlib
import heapq
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from condkd_ray.cluster.connection.connect import connect
from condkd_ray.cluster.connection.resources import check_resources, check_room, crew_size, slots, teams
from condkd_ray.core.config import content_hash
from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.records import Record, check_same_experiment, read_records
from condkd_ray.core.units import byte_size, duration
from condkd_ray.core.view import SILENT, OnStep, View, unheard
from condkd_ray.report.tables.table import Table
from condkd_ray.runs.estimate.probe import Cost, Span, join, probe_set, probe_teacher, probe_trial, recorded
from condkd_ray.runs.options import Options
from condkd_ray.study.space import corners, default
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.plan import NUMBERS, Plan, can_share

PROBING_SECONDS = 90.0
"""After which no further arm is tried; it is then taken to lie between the cheapest and the dearest."""
STARTED = Span(5, 30)
"""Seconds until the first trial of a sweep computes: its processes import PyTorch."""
BETWEEN = Span(0.1, 1.5)
"""Seconds from a trial's end to the next one's start, its final test included."""
REPORTED = Span(3, 15)
"""Seconds that tables and figures take at the end."""
WRITTEN = Span(0.5e6, 4e6)
"""Bytes of tables, figures and event files, beside what each trial leaves."""
DRIVER = Span(0.4e9, 1.5e9)
"""Bytes of memory of the program itself and of Ray's own processes."""


@dataclass
class Workload:
    """What is to be done, and what is known of its cost."""

    planned: Sequence[Plan]
    done: dict[Plan, Record]
    costs: dict[str, Cost] = field(default_factory=dict)
    """By arm."""
    based_on: list[str] = field(default_factory=list)

    @classmethod
    def of_corners(cls, tree: dict[str, Any]) -> Workload:
        """A trial of each corner of a space, and of its default."""
        return cls([Plan(name, 0, config.seed, config) for name, config in corners(tree).items()], {})

    @classmethod
    def of_search(cls, tree: dict[str, Any], trials: int) -> Workload:
        """So many trials of a space that nobody has chosen yet."""
        return cls([Plan("trial", 0, 0, default(tree))] * trials, {})

    @property
    def missing(self) -> list[Plan]:
        """The trials that are left to run."""
        return [plan for plan in self.planned if plan not in self.done]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a whole run from now. Seconds and bytes."""

    at_once: int
    before: Span
    """Until the first trial can start: Ray, and what is not cached."""
    wall: Span
    cpu: Span
    kept: Span
    """On disk when it is done."""
    working: Span
    """On disk beside that, while it runs."""
    trial_memory: Span
    memory: Span


def estimate(
    work: Workload,
    options: Options,
    device: str,
    view: View = SILENT,
    *,
    whole: Workload | None = None,
    shortest: float = 1,
) -> Estimate:
    """What is left of `work` will take, whose `costs` and `based_on` are filled in. Raises `InputError`.

    Or what the `whole` of a search will take, whose trials lie somewhere between those of `work`, the corners of its
    space. `shortest`: part of its rounds after which a trial may be stopped.
    """
    at_once, connected = fitting_at_once([plan.config for plan in work.missing], options, view)
    before = connected + probe(work, options, device, view)
    if whole is None:
        return total(work, before, at_once)
    if work.costs:
        found, stopped = join(list(work.costs.values())), Span(shortest, 1)
        whole.costs["trial"] = replace(found, wall=found.wall * stopped, cpu=found.cpu * stopped)
    whole.based_on = work.based_on
    return total(whole, before, at_once)


def probe(work: Workload, options: Options, device: str, view: View = SILENT) -> Span:
    """Fill in the costs, with stand-ins for what is not cached; the seconds that making it will take."""
    torch.set_num_threads(max(1, int(options.cpus_per_trial)))
    stand_ins = StandIns()
    workshop = Workshop(options.cache, device, stand_ins=stand_ins)
    with view.bar("trying out what trials take") as on_step, tempfile.TemporaryDirectory() as folder:
        before = _preparation(work, workshop, stand_ins)
        _measure(work, workshop, options.out, Path(folder), on_step, untrained=bool(stand_ins.teachers))
    return before


def fitting_at_once(configs: Sequence[TrialConfig], options: Options, view: View = SILENT) -> tuple[int, Span]:
    """Trials at once, and seconds until the cluster is there."""
    begin = time.perf_counter()
    with connect(options.address, view=view):
        cpus, gpus = options.cpus_per_trial, options.gpus_per_trial
        check_resources(cpus, gpus, options.resources)
        check_room(cpus, gpus, options.per_producer, configs)
        crew = max(map(crew_size, configs))
        fitting = min(slots(cpus, gpus, options.resources), teams(cpus, gpus, options.per_producer, crew))
    connected = time.perf_counter() - begin
    return min(fitting, options.max_concurrent or fitting), Span(connected, 2 * connected)


def total(work: Workload, before: Span, at_once: int) -> Estimate:
    """Of all that is left of `work`, whose costs are known, so many trials at once."""
    costs = [work.costs[plan.arm] for plan in work.missing if plan.arm in work.costs]
    kinds = {(plan.arm, plan.ipc) for plan in work.missing}
    dearest = join(costs) if costs else Cost.nothing()
    at_once = max(1, min(at_once, len(costs)))
    trials = Span(*(makespan([getattr(cost.wall, end) for cost in costs], at_once) for end in ("low", "high")))
    around = before + STARTED + REPORTED
    return Estimate(
        at_once=at_once,
        before=before,
        wall=trials + around + BETWEEN * (len(costs) / at_once),
        cpu=sum((cost.cpu for cost in costs), Span()) + around + BETWEEN * len(costs),
        kept=sum((cost.kept for cost in costs), WRITTEN) + dearest.product * len(kinds),
        working=dearest.working * at_once,
        trial_memory=dearest.memory,
        memory=dearest.memory * at_once + DRIVER,
    )


def finished_before(planned: Sequence[Plan], out: Path) -> dict[Plan, Record]:
    """By config: what a trial is prepared with, which its hash counts too, may not have been made."""
    records = [record for record in read_records(out) if (record.status, record.numbers) == ("finished", NUMBERS)]
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        # A record of another version, that planned trials cannot be equal to.
        with contextlib.suppress(InputError):
            found[content_hash(from_tree(record.config)), record.scope] = record
    return {plan: found[key] for plan in planned if (key := (content_hash(plan.config), plan.scope)) in found}


def _preparation(work: Workload, workshop: Workshop, stand_ins: StandIns) -> Span:
    """Seconds of what has to be made before the first trial that is missing."""
    for plan in work.missing:
        workshop.teacher(plan.config)
        workshop.condensed(plan.config)
    total, known = Span(), {}
    for config in stand_ins.teachers.values():
        total += probe_teacher(config, workshop)
    for config, method in stand_ins.sets.values():
        if method not in known:
            known[method] = probe_set(config, method, workshop)
        total += known[method]
    return total


def _measure(
    work: Workload, workshop: Workshop, out: Path, folder: Path, on_step: OnStep = unheard, *, untrained: bool = False
) -> None:
    """The cost of a trial of each arm that is not done. `untrained`: whether of a stand-in for the teacher."""
    begin, tried, diverged = time.perf_counter(), 0, []
    arms = {plan.arm: plan for plan in sorted(work.missing, key=lambda plan: (plan.ipc, -plan.seed))}
    for number, (arm, plan) in enumerate(arms.items()):
        on_step(number, len(arms))
        records = [record for other, record in work.done.items() if other.arm == arm]
        if records:
            work.costs[arm] = recorded(records, out)
        elif time.perf_counter() - begin < PROBING_SECONDS:
            try:
                work.costs[arm] = probe_trial(plan, workshop.prepare(plan.config), folder / str(len(work.costs)))
                tried += 1
            except NonFiniteError:
                diverged.append(arm)
    by_record = len(work.costs) - tried
    rest = [arm for arm in arms if arm not in work.costs]
    if rest and work.costs:
        work.costs |= dict.fromkeys(rest, join(list(work.costs.values())))
    stand_in = ", a stand-in for the teacher," if untrained else ""
    work.based_on = [
        *[f"records of {len(work.done)} finished trials for {by_record} arms"] * bool(by_record),
        *[f"a few rounds{stand_in} of one trial for {tried} arms, on this machine"] * bool(tried),
        *["each trial making its own images: those that share them take less"] * _shares(work.missing),
        *[f"the other arms for {', '.join(rest)} ({'a stand-in diverged' if diverged else 'time was short'})"]
        * bool(rest),
    ]


def _shares(plans: Sequence[Plan]) -> bool:
    return any(plan.scope == "inversion" and can_share(plan.config) for plan in plans)


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """How long trials take in their order, each starting as soon as a place is free."""
    places = [0.0] * at_once
    for each in seconds:
        heapq.heapreplace(places, places[0] + each)
    return max(places)


NOTHING = "Nothing is left to run.\n"


def explain(experiment: str, planned: Sequence[Plan], options: Options, device: str, view: View = SILENT) -> str:
    """The estimate of an experiment, as text for a terminal. Raises `InputError` as the run itself would."""
    check_same_experiment(options.out, experiment)
    work = Workload(planned, {} if options.fresh else finished_before(planned, options.out))
    head = f"{len(planned)} trials, {len(work.done)} of them finished; results in {options.out}\n"
    return head + (_told(work, estimate(work, options, device, view), options) if work.missing else NOTHING)


def explain_search(
    tree: dict[str, Any], options: Options, device: str, view: View = SILENT, *, trials: int, shortest: float = 1
) -> str:
    """The estimate of a search of `trials` more trials, from probes of the space's default and of its corners.

    `shortest`: part of its rounds after which a trial may be stopped. Raises `InputError` as the search itself would.
    """
    if trials < 1:
        return NOTHING
    corners, whole = Workload.of_corners(tree), Workload.of_search(tree, trials)
    found = estimate(corners, options, device, view, whole=whole, shortest=shortest)
    head = f"{trials} trials to run; results in {options.out}\n"
    return head + _told(whole, found, options, _arms(corners, "Corners of the space"))


def _told(work: Workload, found: Estimate, options: Options, tried: Table | None = None) -> str:
    if not work.costs:
        return "No trial could be measured.\n"
    whose = " of the GPU" if options.gpus_per_trial else ""
    lines = [
        "",
        (tried or _arms(work)).text(),
        f"at once      {found.at_once}, with {options.cpus_per_trial:g} CPUs and {options.gpus_per_trial:g} GPUs each",
        f"before them  {_seconds(found.before)}: Ray, and what is not cached of teachers and condensed sets",
        f"wall time    {_seconds(found.wall)}",
        f"CPU time     {_seconds(found.cpu)}",
        f"disk         {_size(found.kept)} stay; while it runs up to {byte_size(found.working.high)} more",
        f"memory       {_size(found.trial_memory)} a trial{whose}, {_size(found.memory)} in all",
        f"based on     {'; '.join(work.based_on)}",
    ]
    return "\n".join(lines) + "\n"


def _arms(work: Workload, title: str = "Trials") -> Table:
    rows = []
    for arm in dict.fromkeys(plan.arm for plan in work.planned):
        plans, cost = [plan for plan in work.planned if plan.arm == arm], work.costs.get(arm)
        done = sum(plan in work.done for plan in plans)
        rows.append([arm, str(len(plans)), str(done), _seconds(cost.cpu) if cost else "-"])
    return Table(title, ["arm", "trials", "finished", "CPU time of one"], rows, "", keys=1)


def _seconds(span: Span) -> str:
    return f"{duration(span.low)} to {duration(span.high)}"


def _size(span: Span) -> str:
    return f"{byte_size(span.low)} to {byte_size(span.high)}"
