"""What all tables share: their form in Markdown and on a terminal, and how a mean with its spread is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from condkd_ray.core.records import Record
from condkd_ray.report.statistics import ACCURACY, Difference, Interval, Spread, spread

WIDTH = 120
"""Columns of a table as text, where nothing else is asked for; wider tables go on below."""
_GAP = "  "
CPU, WALL = "time/cpu_seconds", "time/wall_seconds"


@dataclass(frozen=True)
class Table:
    """A header and rows of text. The first `keys` columns name a row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    keys: int = 3

    def markdown(self) -> str:
        """As a GitHub table."""
        # A bar in a cell, as in some label, would end the cell.
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.header, *self.rows)]
        rule = ["---", *["--:"] * (len(self.header) - 1)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
        return f"## {self.title}\n\n{body}\n\n{self.legend}\n"

    def text(self, width: int = WIDTH) -> str:
        """In aligned columns, those beyond `width` in a further block with the same rows."""
        lines = (self.header, *self.rows)
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        blocks = ["\n".join(_aligned(lines, widths, columns)) for columns in _fold(widths, self.keys, width)]
        return f"{self.title}\n" + "\n\n".join(blocks) + "\n"


def _fold(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Numbers of the columns of each block: the keys, and as many others, at least one, as fit."""
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


def over(records: Sequence[Record], metric: str) -> Spread | None:
    """Mean and spread of a metric over the trials that have it."""
    return spread(record.metrics.get(metric, math.nan) for record in records)


def count(records: Sequence[Record]) -> int:
    """How many trials were tested."""
    found = over(records, ACCURACY)
    return found.n if found else 0


def shown(found: Spread | None, n: int | None, *, factor: float = 1.0, digits: int = 2, deviation: bool = True) -> str:
    """Mean, and standard deviation where there is one; a mean over another number of trials than `n` says so."""
    if found is None:
        return "-"
    std = f" ± {factor * found.std:.{digits}f}" if deviation and found.std is not None else ""
    return f"{factor * found.mean:.{digits}f}{std}" + ("" if n in (None, found.n) else f" (n = {found.n})")


def place(arm: str, ipc: int) -> list[str]:
    """The cells of an arm, or of a comparison of two, and of its IPC; a dash for none."""
    return [arm, str(ipc or "-")]


def compared(one: Difference) -> list[str]:
    """The cells of a comparison and its IPC."""
    return place(f"{one.left} - {one.right}", one.ipc)


def signed(found: Difference | None, *, factor: float = 100.0, digits: int = 2) -> str:
    """A mean difference with its sign, and its standard deviation where there is one; a dash without any."""
    if found is None:
        return "-"
    std = "" if found.std is None else f" ± {factor * found.std:.{digits}f}"
    return f"{factor * found.mean:+.{digits}f}{std}"


def chance(p: float | None) -> str:
    """The p of a difference; a dash without any."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def between(found: Interval | None, *, factor: float = 100.0, digits: int = 2, unknown: str = "-") -> str:
    """An interval with signs; `unknown` where there is none."""
    return " to ".join(f"{factor * end:+.{digits}f}" for end in found) if found else unknown
