"""What rows were made from beside their seeds: data, and of a stranger's condensed set its files.

A row's `condensed_hash` cannot tell: it is of the images that a seed has drawn from the files, in the order drawn.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from campaign.rows import Row
from condkd_ray.core.config import file_digest

Source = tuple[str, str]
"""Digests of the data and of the files of a stranger's set, the latter empty where there are none or none are known."""


def set_digest(path: Path, before: float) -> str:
    """16 hex digits of the names and contents of a file, or of all files of a folder.

    Empty where they are not there, or were changed after the time `before`: a trial of then may have seen others.
    """
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path] * path.is_file()
    if not files or any(one.stat().st_mtime > before for one in files):
        return ""
    told = [f"{one.relative_to(path).as_posix()} {file_digest(one)}" for one in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def alike(one: Source, other: Source) -> bool:
    """Whether rows of both may be pooled: of the same data, and as far as is known of the same files."""
    return one[0] == other[0] and (one[1] == other[1] or "" in (one[1], other[1]))


def source(rows: Sequence[Row]) -> Source:
    """That of the rows of a unit, which all are of one maker."""
    return rows[0].record.data_hash, max(row.set_digest for row in rows)


def split(units: Sequence[list[Row]]) -> tuple[list[list[Row]], list[list[Row]]]:
    """The answered units of a cell that may be pooled, and the rest: those of the source of most seeds, else the first.

    Units whose files are not known go with those of the same data that are of one set of files; of several, with none.
    """
    found = [source(rows) for rows in units]

    def settled(one: Source) -> Source:
        known = {other for other in found if other[1] and other[0] == one[0]}
        return next(iter(known)) if not one[1] and len(known) == 1 else one

    sources = [settled(one) for one in found]
    most = max(sources, key=sources.count, default=None)
    named = list(zip(sources, units, strict=True))
    return [rows for one, rows in named if one == most], [rows for one, rows in named if one != most]
