"""Data and files from which rows were made: digests of the data set and of an imported condensed set.

A row's `condensed_hash` does not identify the files: it covers the images that a seed drew from them, in that order.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from campaign.rows import Row
from condkd_ray.core.config import file_digest

Source = tuple[str, str]
"""Digests of the data and of the files of an imported set; the latter is "" without such a set or if not known."""


def set_digest(path: Path, before: float) -> str:
    """Return 16 hex digits of the names and contents of a file, or of all files in a folder.

    Return "" if there are none, or if one changed after the time `before`: a trial of that time may have read others.
    """
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path] * path.is_file()
    if not files or any(one.stat().st_mtime > before for one in files):
        return ""
    lines = [f"{one.relative_to(path).as_posix()} {file_digest(one)}" for one in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def alike(one: Source, other: Source) -> bool:
    """Return whether rows of both sources may be pooled: the same data, and the same files as far as known."""
    return one[0] == other[0] and (one[1] == other[1] or "" in (one[1], other[1]))


def source(rows: Sequence[Row]) -> Source:
    """Return the source of a unit's rows, which all have one maker."""
    return rows[0].record.data_hash, max(row.set_digest for row in rows)


def split(units: Sequence[list[Row]]) -> tuple[list[list[Row]], list[list[Row]]]:
    """Split a cell's completed units into those that may be pooled and the rest.

    The source with the most seeds is pooled, the first one of equals. Units with unknown files join the units of the
    same data if these have only one known set of files.
    """
    found = [source(rows) for rows in units]

    def settled(one: Source) -> Source:
        known = {other for other in found if other[1] and other[0] == one[0]}
        return next(iter(known)) if not one[1] and len(known) == 1 else one

    sources = [settled(one) for one in found]
    most = max(sources, key=sources.count, default=None)
    named = list(zip(sources, units, strict=True))
    return [rows for one, rows in named if one == most], [rows for one, rows in named if one != most]
