"""The whole result as one HTML page that asks for no other file and needs no script."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from condkd_ray.core.storage import atomic_write
from condkd_ray.report.page import comparison, experiment, search
from condkd_ray.report.page.elements import rendered
from condkd_ray.report.results import Results

PAGE, COMPARISON = "report.html", "comparison.html"


def write(results: Results, drawn: Mapping[str, Figure | None] | None = None) -> None:
    """Write `report.html`. `drawn`: of an experiment, the figures of `report.figures.accuracy`."""
    page = search.page(results) if drawn is None else experiment.page(results, drawn)
    atomic_write(results.out / PAGE, rendered(page))


def compare(out: Path, other: Path, to: Path | None = None) -> Path:
    """Write one page on two folders, `comparison.html` in the first if not told otherwise; where it lies.

    Raises `InputError` where they cannot be compared, by their data sets, kinds or formats.
    """
    path = out / COMPARISON if to is None else to
    atomic_write(path, rendered(comparison.page(out, other)))
    return path
