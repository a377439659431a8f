"""What a page is made of, as plain values, and the one place where they become HTML: all text is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from condkd_ray.report.tables.table import Table

LONG = 30
"""Of longer tables the rest is folded away."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A08A00", "#999999")


@dataclass(frozen=True)
class Text:
    """A paragraph; a small one below what it explains."""

    text: str
    small: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Words of a machine, as they are."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Rows:
    """A table. Its legend stands below it, all but the first `most` rows are folded away."""

    table: Table
    most: int = LONG
    kind: str = "rows"


@dataclass(frozen=True)
class Picture:
    """An image by its data URI, with words for who cannot see it, and a caption."""

    uri: str
    words: str
    caption: str = ""
    kind: str = "picture"


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    pictures: Sequence[Picture]
    kind: str = "gallery"


@dataclass(frozen=True)
class Bar:
    """A row of stacked parts; `widths` are per cent of the longest row, `total` is written behind them."""

    label: str
    widths: Sequence[float]
    total: str


@dataclass(frozen=True)
class Bars:
    """Rows of stacked bars, and the names of their parts."""

    parts: Sequence[str]
    rows: Sequence[Bar]
    kind: str = "bars"


@dataclass(frozen=True)
class Stretch:
    """A difference on a common scale, its places in per cent of the width; without an interval a point alone."""

    label: str
    note: str
    mean: float
    ends: Sequence[float] | None
    told: str
    interval: str
    p: str
    mood: str
    """better, worse or open."""


@dataclass(frozen=True)
class Forest:
    """Differences below one another, and where zero stands; `legend` says what the lines are, `p`: if any has one."""

    rows: Sequence[Stretch]
    zero: float
    legend: str
    p: bool
    kind: str = "forest"


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


def rendered(page: Page) -> bytes:
    """One HTML file that asks for no other and needs no script."""
    # Undefined names raise: a misspelt one would leave a hole that nobody sees.
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = [section for section in page.sections if section.elements]
    told = templates.get_template("page.html").render(page=page, sections=sections, palette=PALETTE)
    return (told.rstrip() + "\n").encode()
