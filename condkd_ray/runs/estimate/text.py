"""Before anything starts: how many trials there are, and what they will take, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from condkd_ray.core.units import byte_size, duration
from condkd_ray.core.view import SILENT, View
from condkd_ray.report.records import check_same_experiment
from condkd_ray.report.tables.table import Table
from condkd_ray.runs.estimate.estimate import Estimate, Work, estimate, estimate_search, finished_before
from condkd_ray.runs.estimate.probe import Span
from condkd_ray.runs.options import Options
from condkd_ray.runs.plan import Plan

NOTHING = "Nothing is left to run.\n"


def explain(experiment: str, planned: Sequence[Plan], options: Options, device: str, view: View = SILENT) -> str:
    """The account, as text for a terminal. Raises `InputError` as the run itself would."""
    check_same_experiment(options.out, experiment)
    work = Work(planned, {} if options.fresh else finished_before(planned, options.out))
    head = f"{len(planned)} trials, {len(work.done)} of them finished; results in {options.out}\n"
    return head + (
        _told(work, estimate(work, options, device, view), options) if work.missing else "Nothing is left to run.\n"
    )


def explain_search(
    tree: dict[str, Any], options: Options, device: str, view: View = SILENT, *, trials: int, shortest: float = 1
) -> str:
    """The account of a search of `trials` more trials, from probes of the space's default and of its corners.

    `shortest`: part of its rounds after which a trial may be stopped. Raises `InputError` as the search itself would.
    """
    if trials < 1:
        return NOTHING
    corners, whole = Work.of_corners(tree), Work.of_search(tree, trials)
    found = estimate_search(corners, whole, options, device, shortest, view)
    head = f"{trials} trials to run; results in {options.out}\n"
    return head + _told(whole, found, options, _arms(corners, "Corners of the space"))


def _told(work: Work, found: Estimate, options: Options, tried: Table | None = None) -> str:
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


def _arms(work: Work, title: str = "Trials") -> Table:
    counts = {
        arm: [plan for plan in work.planned if plan.arm == arm] for arm in dict.fromkeys(p.arm for p in work.planned)
    }
    rows = [
        [
            arm,
            str(len(plans)),
            str(sum(plan in work.done for plan in plans)),
            _seconds(work.costs[arm].cpu) if arm in work.costs else "-",
        ]
        for arm, plans in counts.items()
    ]
    return Table(title, ["arm", "trials", "finished", "CPU time of one"], rows, "", keys=1)


def _seconds(span: Span) -> str:
    return f"{duration(span.low)} to {duration(span.high)}"


def _size(span: Span) -> str:
    return f"{byte_size(span.low)} to {byte_size(span.high)}"
