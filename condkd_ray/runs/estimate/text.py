"""Before anything starts: how many trials there are, and what they will take, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from condkd_ray.commands.console.progress import duration
from condkd_ray.report.records import check_same_experiment
from condkd_ray.report.tables.table import Table
from condkd_ray.runs.estimate.estimate import Estimate, Work, estimate, estimate_search, finished_before
from condkd_ray.runs.estimate.probe import Span
from condkd_ray.runs.options import RunFlags
from condkd_ray.runs.plan import Plan


def explain(experiment: str, planned: Sequence[Plan], flags: RunFlags, device: str) -> str:
    """The account, as text for a terminal. Raises `InputError` as the run itself would."""
    check_same_experiment(flags.out, experiment)
    work = Work(planned, {} if flags.fresh else finished_before(planned, flags.out))
    head = f"{len(planned)} trials, {len(work.done)} of them finished; results in {flags.out}\n"
    return head + (_told(work, estimate(work, flags, device), flags) if work.missing else "Nothing is left to run.\n")


def explain_search(tree: dict[str, Any], flags: RunFlags, device: str, *, trials: int, shortest: float = 1) -> str:
    """The account of a search of `trials` more trials, from probes of the space's default and of its corners.

    `shortest`: part of its rounds after which a trial may be stopped. Raises `InputError` as the search itself would.
    """
    if trials < 1:
        return "Nothing is left to run.\n"
    corners, whole = Work.of_corners(tree), Work.of_search(tree, trials)
    found = estimate_search(corners, whole, flags, device, shortest)
    head = f"{trials} trials to run; results in {flags.out}\n"
    return head + _told(whole, found, flags, _arms(corners, "Corners of the space"))


def _told(work: Work, found: Estimate, flags: RunFlags, tried: Table | None = None) -> str:
    if not work.costs:
        return "No trial could be measured.\n"
    whose = " of the GPU" if flags.gpus_per_trial else ""
    lines = [
        "",
        (tried or _arms(work)).text(),
        f"at once      {found.at_once}, with {flags.cpus_per_trial:g} CPUs and {flags.gpus_per_trial:g} GPUs each",
        f"before them  {_seconds(found.before)}: Ray, and what is not cached of teachers and condensed sets",
        f"wall time    {_seconds(found.wall)}",
        f"CPU time     {_seconds(found.cpu)}",
        f"disk         {_size(found.kept)} stay; while it runs up to {_bytes(found.working.high)} more",
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
    return f"{_bytes(span.low)} to {_bytes(span.high)}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
