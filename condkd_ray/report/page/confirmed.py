"""The best trials of a search and its default, run again with new seeds: the only claim that a search makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.records import MANIFEST
from condkd_ray.report import planned, significance
from condkd_ray.report.page.elements import Element, Rows, Section
from condkd_ray.report.page.summary import forest, judged, verdict
from condkd_ray.report.statistics import ACCURACY, Difference, comparisons
from condkd_ray.report.tables import arms, teachers
from condkd_ray.report.tables.rounds import rounds_table
from condkd_ray.report.tables.table import Table

FOLDER = "confirmed"
"""Below the search's."""
TITLE = "The best again, with new seeds"
_CAUTION = "All trials share one seed; whether it is better than another shows only with new ones."
_OTHER = (
    "The trials with new seeds are not shown: they were made by version {} of the numbers, the search's by another."
)
_LEGEND = (
    "The same difference in what the search looked at, in its own unit; intervals and p as above. A gain here that "
    "test accuracy does not show is one of the proxy alone."
)


def section(out: Path, objective: str, numbers: set[int]) -> tuple[Section | None, list[str]]:
    """The section, its first element for the first screen, and the claim; where nothing was run again, a caution.

    `numbers`: the versions of the numbers of the search's trials. Trials of another version are not shown beside them.
    """
    place = out / FOLDER
    manifest, found = planned(place) if (place / MANIFEST).is_file() else (None, [])
    if numbers and found and found[0].numbers not in numbers:
        return None, [_CAUTION, _OTHER.format(found[0].numbers)]
    differences = comparisons(found, manifest.test_labels, baseline=manifest.baseline) if manifest else []
    if manifest is None or not differences:
        return None, [_CAUTION]
    finished = [record for record in found if record.status == "finished"]
    told = [arms.accuracy_table(found), arms.difference_table(differences)]
    if objective != ACCURACY:
        told.append(objective_table(comparisons(finished, baseline=manifest.baseline, metric=objective), objective))
    told.append(rounds_table(finished))
    elements: list[Element] = [
        forest(judged(differences), teachers.sentence(found)),
        *(Rows(table) for table in told if table.rows),
    ]
    claim = verdict(judged(differences))[0]
    return Section(TITLE, elements), [f"With new seeds: {claim[0].lower()}{claim[1:]}"]


def objective_table(differences: Sequence[Difference], objective: str) -> Table:
    """A row a comparison."""
    rows = [
        [
            f"{one.left} - {one.right}",
            str(one.ipc or "-"),
            str(one.n),
            f"{one.mean:+.4f}" + ("" if one.std is None else f" ± {one.std:.4f}"),
            "-" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}",
            significance.told(p),
            one.method,
        ]
        for one, p in zip(differences, significance.corrected(differences), strict=True)
    ]
    header = ["difference", "IPC", "n", objective, "95 % over seeds", "p (Holm)", "method"]
    return Table(f"Paired differences in {objective}", header, rows, _LEGEND)
