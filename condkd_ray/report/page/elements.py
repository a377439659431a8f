"""What a page is made of, as plain values, and the one place where they become HTML: all text is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from condkd_ray.report.statistics import Difference, Interval
from condkd_ray.report.tables.table import Table, chance

LONG = 30
"""Of longer tables the rest is folded away."""
SURE = 0.05
"""Of a corrected p, below which a difference is taken to be no chance find."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A08A00", "#999999")


@dataclass(frozen=True)
class Text:
    """A paragraph; a small one below what it explains."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Code:
    """Words of a machine, as they are."""

    text: str


@dataclass(frozen=True)
class Rows:
    """A table. Its legend stands below it, all but the first `most` rows are folded away."""

    table: Table
    most: int = LONG


@dataclass(frozen=True)
class Picture:
    """An image by its data URI, with words for who cannot see it, and a caption."""

    uri: str
    words: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Bars:
    """Stacked bars with the names of their parts: labels, widths in per cent of the longest row, words behind them."""

    parts: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float], str]]


@dataclass(frozen=True)
class Forest:
    """Differences below one another on a scale from `low` to `high`; without an interval a point alone.

    `ipcs`: whether rows name their IPC. `p`: whether any has one. `legend` says what the lines are.
    """

    rows: Sequence[tuple[Difference, Interval | None]]
    low: float
    high: float
    ipcs: bool
    p: bool
    legend: str

    def place(self, value: float) -> str:
        """Where a value stands, in per cent of the width."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}"


Element = Text | Code | Rows | Picture | Gallery | Bars | Forest


def tables(*found: Table, most: int = LONG) -> list[Element]:
    """Those that have rows."""
    return [Rows(table, most) for table in found if table.rows]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; left out where that is nothing."""

    title: str
    elements: Sequence[Element]

    @property
    def anchor(self) -> str:
        """The name it is reached by."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """The first screen, which has the answer, and sections below it."""

    name: str
    question: str
    verdict: Sequence[str]
    """The answer in sentences, the first the most important."""
    facts: Sequence[tuple[str, str]]
    """What it rests on: names and values."""
    lead: Sequence[Element]
    """Beside one another on a wide screen."""
    sections: Sequence[Section] = field(default_factory=tuple)
    interim: str = ""
    """That it shows no final results, in words; empty where it does."""


def mood(one: Difference) -> str:
    """Whether more seeds would likely show the same sign: better, worse or open."""
    if one.p is None or one.p >= SURE:
        return "open"
    return "better" if one.mean > 0 else "worse"


def points(fraction: float) -> str:
    """In percentage points, as the tables have it."""
    return f"{100 * fraction:+.2f}".replace("-", "\N{MINUS SIGN}")


def rendered(page: Page) -> bytes:
    """One HTML file that asks for no other and needs no script."""
    # Undefined names raise: a misspelt one would leave a hole that nobody sees.
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(kind=lambda element: type(element).__name__, points=points, chance=chance, mood=mood)
    sections = [section for section in page.sections if section.elements]
    told = templates.get_template("page.html").render(page=page, sections=sections, palette=PALETTE)
    return (told.rstrip() + "\n").encode()
