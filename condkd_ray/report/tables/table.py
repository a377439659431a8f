"""The form of all tables, in Markdown and as text, and the form of numbers in their cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import Difference, Interval, Spread, score_of, spread

WIDTH = 120
"""Default width of a table as text, in characters; wider tables continue in a second block."""
_GAP = "  "
CPU, WALL = "time/cpu_seconds", "time/wall_seconds"
"""Metrics of a trial's CPU time and wall-clock time."""


@dataclass(frozen=True)
class Table:
    """A header and rows of text. The first `keys` columns name a row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    keys: int = 3

    def markdown(self) -> str:
        """Return the table as GitHub Markdown."""
        # A bar in a cell would end the cell, and some labels contain one.
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.header, *self.rows)]
        rule = ["---", *["--:"] * (len(self.header) - 1)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
        return f"## {self.title}\n\n{body}\n\n{self.legend}\n"

    def text(self, width: int = WIDTH) -> str:
        """Return the table as aligned columns; those beyond `width` follow in further blocks with the same rows."""
        lines = (self.header, *self.rows)
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        blocks = ["\n".join(_aligned(lines, widths, columns)) for columns in _fold(widths, self.keys, width)]
        return f"{self.title}\n" + "\n\n".join(blocks) + "\n"


def _fold(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Return the column numbers of each block: the key columns, and as many of the others as fit, at least one."""
    head = list(range(min(keys, len(widths))))
    blocks = [head]
    for column in range(len(head), len(widths)):
        together = [*blocks[-1], column]
        if sum(widths[i] + len(_GAP) for i in together) - len(_GAP) > width and blocks[-1] != head:
            blocks.append([*head, column])
        else:
            blocks[-1] = together
    return blocks


def _aligned(lines: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]) -> list[str]:
    rows = [[line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in columns] for line in lines]
    rule = ["-" * widths[i] for i in columns]
    return [_GAP.join(row).rstrip() for row in (rows[0], rule, *rows[1:])]


def mean_of(records: Sequence[Record], metric: str) -> Spread | None:
    """Return the mean and spread of a metric over the trials that have it; None if no trial has it."""
    return spread(record.metrics.get(metric, math.nan) for record in records)


def count(records: Sequence[Record]) -> int:
    """Return the number of trials with a test score."""
    found = mean_of(records, score_of(records).test)
    return found.n if found else 0


def mean_text(
    found: Spread | None, n: int | None, *, factor: float = 1.0, digits: int = 2, deviation: bool = True
) -> str:
    """Return a mean and, if known, its standard deviation as text; a dash for None.

    The values are multiplied by `factor`. The number of trials is added if it differs from `n`.
    """
    if found is None:
        return "-"
    std = f" ± {factor * found.std:.{digits}f}" if deviation and found.std is not None else ""
    return f"{factor * found.mean:.{digits}f}{std}" + ("" if n in (None, found.n) else f" (n = {found.n})")


def arm_cells(arm: str, ipc: int) -> list[str]:
    """Return two cells: `arm`, which may also be a comparison of two arms, and its IPC, a dash for IPC 0."""
    return [arm, str(ipc or "-")]


def comparison_cells(one: Difference) -> list[str]:
    """Return two cells: the two arms of a comparison, and its IPC."""
    return arm_cells(f"{one.left} - {one.right}", one.ipc)


def signed(found: Difference | None, *, factor: float = 100.0, digits: int = 2) -> str:
    """Return a mean difference times `factor`, with its sign and, if known, its standard deviation; a dash for None."""
    if found is None:
        return "-"
    std = "" if found.std is None else f" ± {factor * found.std:.{digits}f}"
    return f"{factor * found.mean:+.{digits}f}{std}"


def p_text(p: float | None) -> str:
    """Return a p value as text; a dash for None."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_text(found: Interval | None, *, factor: float = 100.0, digits: int = 2, unknown: str = "-") -> str:
    """Return the ends of an interval times `factor`, with their signs, as text; `unknown` for None."""
    return " to ".join(f"{factor * end:+.{digits}f}" for end in found) if found else unknown
