"""Tables and sentences on the teachers of the seeds: their scores, and results per teacher.

Seeds that share a teacher show nothing about other teachers. If there are several teachers, seeds of one teacher are
more alike than seeds of different teachers, so the tables have a mean per teacher beside the mean over all seeds.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from condkd_ray.core.records import Manifest, Record
from condkd_ray.core.task import Score
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import difference, groups, interval, of_arms, score_of, teacher_names, tested
from condkd_ray.report.tables.table import Table, arm_cells, comparison_cells, interval_text, mean_of, mean_text, signed

_LISTED = 12
"""Largest number of seeds of a teacher that are listed; of more, the number is given."""
_FEW = 4
"""Largest number of scores of teachers that are listed; of more, the range is given."""
_SCORES = "Test {}: mean ± standard deviation over the n seeds of each teacher, in percent."
_DIFFERENCES = (
    "Paired by seed, in percentage points, over the n seeds of each teacher; the interval is the paired t interval of "
    "the teachers' means (another teacher)."
)
_MEASURED = {"test": "test", "val": "validation"}
"""Names of the parts of the data on which a teacher is measured."""


def sentence(results: Results) -> str:
    """Return a sentence that states whether the intervals cover other teachers; "" for one seed or unknown teachers."""
    known = [one for one in tested(results.records) if one.teacher_hash]
    seeds, hashes = {one.seed for one in known}, {one.teacher_hash for one in known}
    if len(seeds) < 2:
        return ""
    if results.by_teacher:
        return _spread_out(results.by_teacher, len(seeds))
    shared = (
        f"All {len(seeds)} seeds share one teacher" if len(hashes) == 1 else "All seeds of an arm share one teacher"
    )
    return f"{shared}: the intervals do not cover other teachers."


def _spread_out(apart: Mapping[str, Sequence[Record]], seeds: int) -> str:
    if len(apart) == seeds:
        return f"Each of the {seeds} seeds has its own teacher: the intervals over seeds hold for other teachers too."
    listed = "; ".join(f"{name}: {_listed({one.seed for one in members})}" for name, members in apart.items())
    return (
        f"The {seeds} seeds are spread over {len(apart)} teachers ({listed}). The intervals over seeds treat all seeds "
        "as independent; the means of each teacher show whether a difference depends on one teacher."
    )


def accuracy_table(results: Results) -> Table:
    """Return a table with a row per arm and IPC and a column per teacher; no rows with one teacher per arm."""
    apart, score = results.by_teacher, results.score
    parts = [groups(members) for members in apart.values()]
    known = groups(one for one in tested(results.records) if one.teacher_hash) if apart else {}
    rows = [
        [*arm_cells(*key), *(mean_text(mean_of(part.get(key, []), score.test), 0, factor=100) for part in parts)]
        for key in known
    ]
    title, legend = f"Test {score.name} of each teacher's students", _SCORES.format(score.name)
    return Table(title, ["arm", "IPC", *apart], rows, legend, keys=2)


def difference_table(results: Results) -> Table:
    """Return a table with a row per comparison and IPC and a column per teacher; no rows with one teacher per arm."""
    rows, metric = [], results.score.test
    by_arm = [of_arms(members) for members in results.by_teacher.values()]
    for one in results.differences if by_arm else ():
        pairs = [[*arms[one.left], *arms[one.right]] for arms in by_arm]
        found = [difference(pair, one.left, one.right, one.ipc, metric=metric) for pair in pairs]
        over_teachers, _ = interval(np.array([part.mean for part in found if part is not None]))
        cells = [f"{signed(part)} (n = {part.n})" if part else signed(part) for part in found]
        rows.append([*comparison_cells(one), *cells, interval_text(over_teachers)])
    header = ["difference", "IPC", *results.by_teacher, "95 % over teachers"]
    return Table("Paired differences of each teacher's students", header, rows, _DIFFERENCES, keys=2)


def listed(manifest: Manifest) -> Sequence[Mapping[str, Any]]:
    """Return the manifest's entry for each teacher."""
    return manifest.teachers or [manifest.teacher]


def lines(results: Results) -> list[str]:
    """Return a sentence on the score of each teacher, and the sentence of `sentence`; unknown ones are ""."""
    known = listed(results.manifest)
    names = teacher_names(results.records) if len(known) > 1 else {}
    score = results.score
    found = [_scores(teacher, names.get(teacher.get("hash", ""), "teacher"), score) for teacher in known]
    return [*found, sentence(results)]


def accuracy(manifest: Manifest) -> tuple[str, float] | None:
    """Return label and test score (a fraction) of a line for the teacher in figures of students; None if unknown.

    Several teachers have one line, at their mean score, and only if all have the same network.
    """
    known, key = listed(manifest), score_of([], manifest).key("test")
    found = [teacher[key] for teacher in known if teacher.get(key) is not None]
    if not found or len(found) < len(known) or len({teacher.get("label") for teacher in known}) > 1:
        return None
    return ("teacher" if len(found) == 1 else f"{len(found)} teachers", fmean(found))


def fact(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the networks and test scores of the teachers, for the head of the page; [] if unknown."""
    found: dict[str, list[str]] = {}
    key = score_of([], manifest).key("test")
    for one in listed(manifest):
        if one.get(key) is not None:
            found.setdefault(str(one.get("label", "")), []).append(f"{100 * one[key]:.2f}")
    count = sum(map(len, found.values()))
    text = ", ".join(f"{label} {_range(values)} %" for label, values in found.items())
    return [("teacher" if count == 1 else f"{count} teachers", text)] if found else []


def _range(values: Sequence[str]) -> str:
    """Return all values if they are few, otherwise the smallest and the largest."""
    return " / ".join(values) if len(values) <= _FEW else f"{min(values, key=float)} to {max(values, key=float)}"


def _scores(teacher: Mapping[str, Any], name: str, score: Score) -> str:
    measured = {score.key(part): word for part, word in _MEASURED.items()}
    found = [f"{word} {100 * teacher[key]:.2f} %" for key, word in measured.items() if teacher.get(key) is not None]
    label = str(teacher.get("label", ""))
    head = f"Teacher {label}" if label in name or name == "teacher" else f"{name.capitalize()} ({label})"
    return f"{head}: {score.name} {', '.join(found)}." if found else ""


def _listed(seeds: set[int]) -> str:
    if len(seeds) > _LISTED:
        return f"{len(seeds)} seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
