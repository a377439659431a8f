"""Where the pages lie, and which page a folder has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.files import atomic_write
from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.page import comparison, experiment, search
from condkd_ray.report.page.elements import rendered

PAGE, COMPARISON = "report.html", "comparison.html"


def write(out: Path, records: Sequence[Record], manifest: Manifest) -> None:
    """Write `report.html` under `out`, of these records."""
    kind = search if manifest.search else experiment
    atomic_write(out / PAGE, rendered(kind.page(out, records, manifest)))


def compare(out: Path, other: Path, to: Path | None = None) -> Path:
    """Write one page on two folders, `comparison.html` in the first if not told otherwise; where it lies.

    Raises `InputError` where they cannot be compared, by their data sets, kinds or formats.
    """
    path = out / COMPARISON if to is None else to
    content = rendered(comparison.page(out, other))
    atomic_write(path, content)
    return path
