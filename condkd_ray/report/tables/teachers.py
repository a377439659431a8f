"""Which teachers the seeds have: what the intervals cannot say, and what comes of each teacher apart.

Seeds that share a teacher say nothing about another one. With several, the seeds of a teacher resemble each other more
than those of different teachers, so the means of each teacher stand beside the mean over all seeds.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import ACCURACY, difference, groups, interval, teacher_names, tested
from condkd_ray.report.tables.table import Table, between, compared, over, place, shown, signed

_LISTED = 12
"""Seeds of a teacher that are listed one by one; of more their number is given."""
_FEW = 4
"""Accuracies of teachers that are listed one by one."""
_ACCURACIES = "Test accuracy: mean ± standard deviation over the n seeds of each teacher, in percent."
_DIFFERENCES = (
    "Paired by seed, in percentage points, over the n seeds of each teacher; the interval is the paired t interval of "
    "the teachers' means (another teacher)."
)
_TEST = "test_accuracy"
_MEASURED = ((_TEST, "test"), ("val_accuracy", "validation"))


def sentence(results: Results) -> str:
    """What the seeds' teachers mean for the intervals; empty with fewer than two seeds or where none is known."""
    known = [one for one in tested(results.records) if one.teacher_hash]
    seeds, hashes = {one.seed for one in known}, {one.teacher_hash for one in known}
    if len(seeds) < 2:
        return ""
    if results.by_teacher:
        return _spread_out(results.by_teacher, len(seeds))
    shared = (
        f"All {len(seeds)} seeds share one teacher" if len(hashes) == 1 else "All seeds of an arm share one teacher"
    )
    return f"{shared}: the intervals say nothing about another teacher."


def _spread_out(apart: Mapping[str, Sequence[Record]], seeds: int) -> str:
    if len(apart) == seeds:
        return (
            f"Each of the {seeds} seeds has a teacher of its own: the intervals over seeds hold for other teachers too."
        )
    listed = "; ".join(f"{name}: {_listed({one.seed for one in members})}" for name, members in apart.items())
    return (
        f"The {seeds} seeds are spread over {len(apart)} teachers ({listed}). The intervals over seeds take all seeds "
        "as independent; the means of each teacher show whether a difference hangs on one."
    )


def accuracy_table(results: Results) -> Table:
    """A row an arm and IPC, a column a teacher; without rows where no arm has several teachers."""
    apart = results.by_teacher
    parts = [groups(members) for members in apart.values()]
    known = groups(one for one in tested(results.records) if one.teacher_hash) if apart else {}
    rows = [
        [*place(*key), *(shown(over(part.get(key, []), ACCURACY), 0, factor=100) for part in parts)] for key in known
    ]
    return Table("Test accuracy of each teacher's students", ["arm", "IPC", *apart], rows, _ACCURACIES, keys=2)


def difference_table(results: Results) -> Table:
    """A row a comparison and IPC, a column a teacher; without rows where no arm has several teachers."""
    rows = []
    for one in results.judged if results.by_teacher else ():
        found = [difference(members, one.left, one.right, one.ipc) for members in results.by_teacher.values()]
        over_teachers, _ = interval(np.array([part.mean for part in found if part is not None]))
        told = [f"{signed(part)} (n = {part.n})" if part else signed(part) for part in found]
        rows.append([*compared(one), *told, between(over_teachers)])
    header = ["difference", "IPC", *results.by_teacher, "95 % over teachers"]
    return Table("Paired differences of each teacher's students", header, rows, _DIFFERENCES, keys=2)


def listed(manifest: Manifest) -> Sequence[Mapping[str, Any]]:
    """What the manifest knows of each teacher."""
    return manifest.teachers or [manifest.teacher]


def lines(results: Results) -> list[str]:
    """A sentence on each teacher's accuracy, and one on what sharing it means."""
    known = listed(results.manifest)
    called = teacher_names(results.records) if len(known) > 1 else {}
    found = [_accuracies(teacher, called.get(teacher.get("hash", ""), "teacher")) for teacher in known]
    return [*found, sentence(results)]


def accuracy(manifest: Manifest) -> tuple[str, float] | None:
    """A word and the test accuracy to draw beside the students'; the mean of several teachers of one network."""
    known = listed(manifest)
    found = [teacher[_TEST] for teacher in known if teacher.get(_TEST) is not None]
    if not found or len(found) < len(known) or len({teacher.get("label") for teacher in known}) > 1:
        return None
    return ("teacher" if len(found) == 1 else f"{len(found)} teachers", fmean(found))


def fact(manifest: Manifest) -> list[tuple[str, str]]:
    """Network and test accuracies for the first screen; nothing where none is known."""
    found: dict[str, list[str]] = {}
    for one in listed(manifest):
        if one.get(_TEST) is not None:
            found.setdefault(str(one.get("label", "")), []).append(f"{100 * one[_TEST]:.2f}")
    count = sum(map(len, found.values()))
    told = ", ".join(f"{label} {_range(values)} %" for label, values in found.items())
    return [("teacher" if count == 1 else f"{count} teachers", told)] if found else []


def _range(values: Sequence[str]) -> str:
    """All of a few, or the smallest and the largest."""
    return " / ".join(values) if len(values) <= _FEW else f"{min(values, key=float)} to {max(values, key=float)}"


def _accuracies(teacher: Mapping[str, Any], name: str) -> str:
    found = [f"{word} {100 * teacher[key]:.2f} %" for key, word in _MEASURED if teacher.get(key) is not None]
    label = str(teacher.get("label", ""))
    told = f"Teacher {label}" if label in name or name == "teacher" else f"{name.capitalize()} ({label})"
    return f"{told}: accuracy {', '.join(found)}." if found else ""


def _listed(seeds: set[int]) -> str:
    if len(seeds) > _LISTED:
        return f"{len(seeds)} seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
