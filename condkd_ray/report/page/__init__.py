"""The report as one HTML page, which loads no other file and needs no script."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from condkd_ray.core.storage import atomic_write
from condkd_ray.report.page import comparison, experiment, search
from condkd_ray.report.page.elements import rendered
from condkd_ray.report.results import Results

PAGE, COMPARISON = "report.html", "comparison.html"


def write(results: Results, drawn: Mapping[str, Figure | None] | None = None) -> None:
    """Write `report.html`.

    `drawn`: the figures of `condkd_ray.report.figures.accuracy` for an experiment; None for a search. Raises
    `InputError` if the folder `confirmed` of a search cannot be read.
    """
    page = search.page(results) if drawn is None else experiment.page(results, drawn)
    atomic_write(results.out / PAGE, rendered(page))


def compare(out: Path, other: Path, to: Path | None = None) -> Path:
    """Write a page that compares two folders; return its path, `to` or `comparison.html` in the first folder.

    Raises `InputError` if one is not a folder of results, or if they differ in task, data set, kind (experiment or
    search) or version of the numbers.
    """
    path = out / COMPARISON if to is None else to
    atomic_write(path, rendered(comparison.page(out, other)))
    return path
