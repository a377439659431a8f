"""The elements of a page as plain values, and their rendering to HTML, which escapes all text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from condkd_ray.report.statistics import Difference, Interval
from condkd_ray.report.tables.table import Table, p_text

LONG = 30
"""Largest number of visible rows of a table; further rows are folded."""
MOST_ROWS = 2000
"""Largest number of rows of a table in a page, so that a browser opens it at once (our choice)."""
SIGNIFICANCE = 0.05
"""Significance level: a difference with a smaller corrected p is marked as better or worse."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A08A00", "#999999")


@dataclass(frozen=True)
class Text:
    """A paragraph; `small`: an explanation of the element above it."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Code:
    """Text of a program, such as a command, shown in a fixed-width font."""

    text: str


@dataclass(frozen=True)
class Rows:
    """A table with its legend below it; all but the first `most` rows are folded, and only `MOST_ROWS` are kept."""

    table: Table
    most: int = LONG

    @property
    def folded(self) -> Sequence[Sequence[str]]:
        """The folded rows."""
        return self.table.rows[self.most : MOST_ROWS]

    @property
    def left_out(self) -> int:
        """Number of rows that are not in the page."""
        return max(0, len(self.table.rows) - MOST_ROWS)


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with an alternative text (`words`) and a caption."""

    uri: str
    words: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    pictures: Sequence[Picture]
    large: bool = False
    """True if the pictures need their own size, because they contain text."""


@dataclass(frozen=True)
class Key:
    """Names with their colours, as `#rrggbb`."""

    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bars:
    """Stacked bars, one per row, with a key of their parts."""

    parts: Sequence[str]
    """Names of the parts."""
    rows: Sequence[tuple[str, Sequence[float], str]]
    """Label, widths of the parts in percent of the longest row, and text behind the bar."""


@dataclass(frozen=True)
class Forest:
    """A forest plot: one difference per row on a common scale, with its interval if it has one."""

    rows: Sequence[tuple[Difference, Interval | None]]
    low: float
    """Left end of the scale."""
    high: float
    """Right end of the scale."""
    ipcs: bool
    """True if the rows show their IPC."""
    p: bool
    """True if any row has a p-value."""
    legend: str
    """Explanation of the lines of the plot."""

    def place(self, value: float) -> str:
        """Return the position of a value, in percent of the width."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}"


Element = Text | Code | Rows | Picture | Gallery | Key | Bars | Forest


def tables(*found: Table, most: int = LONG) -> list[Element]:
    """Return the tables that have rows."""
    return [Rows(table, most) for table in found if table.rows]


@dataclass(frozen=True)
class Section:
    """A heading and its elements; a section without elements is left out of the page."""

    title: str
    elements: Sequence[Element]

    @property
    def anchor(self) -> str:
        """The HTML id of the section, to which links refer."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """A page: its head with the answer, and sections below it."""

    name: str
    question: str
    verdict: Sequence[str]
    """The answer in sentences, the most important first."""
    facts: Sequence[tuple[str, str]]
    """Names and values of the facts behind the answer."""
    lead: Sequence[Element]
    """Elements below the head, side by side on a wide screen."""
    sections: Sequence[Section] = field(default_factory=tuple)
    interim: str = ""
    """Notice that the results are not final; "" if they are."""


def outcome(one: Difference) -> str:
    """Return "better" or "worse" if the corrected p-value is below `SIGNIFICANCE`, otherwise "open"."""
    if one.p is None or one.p >= SIGNIFICANCE:
        return "open"
    return "better" if one.mean > 0 else "worse"


def points(fraction: float) -> str:
    """Return a fraction in percentage points with a sign and two decimals, as in the tables."""
    return f"{100 * fraction:+.2f}".replace("-", "\N{MINUS SIGN}")


def rendered(page: Page) -> bytes:
    """Return the page as one HTML file, which loads no other file and needs no script."""
    # An undefined name in the template raises an error; by default Jinja would leave an unnoticed gap.
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(kind=lambda element: type(element).__name__, points=points, p_text=p_text, outcome=outcome)
    sections = [section for section in page.sections if section.elements]
    html = templates.get_template("page.html").render(page=page, sections=sections, palette=PALETTE)
    return (html.rstrip() + "\n").encode()
