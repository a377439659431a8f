"""The style that all figures share: styles of arms, panels, axes, labels that do not overlap, reproducible files."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from condkd_ray.core.records import Record, arm_rank
from condkd_ray.core.storage import atomic_write
from condkd_ray.report.statistics import groups

STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "grid.linewidth": 0.3, "grid.color": "#DDDDDD", "svg.hashsalt": "condkd_ray", "svg.fonttype": "none",
}  # fmt: skip
styled = matplotlib.rc_context(STYLE)
"""Decorator of functions that draw or save a figure; sets the style while they run."""
POINT: Any = {"ls": "", "mec": "white"}
"""Style of a marker without a line; the white edge separates it from others."""
GREY = "#555555"
# The colours of Okabe and Ito, which colour-blind readers can distinguish; in grey, the markers differ.
_STANDARD = {
    "none": (GREY, "o"), "condensed_only": ("#E69F00", "s"), "mixed": ("#0072B2", "o"),
    "mixed_prior": ("#56B4E9", "P"), "guided": ("#D55E00", "D"), "guided_only": ("#CC79A7", "^"),
    "real": ("#009E73", "v"),
}  # fmt: skip
# Other arms first get two styles that no standard arm has, then those of absent standard arms, then Tol's muted
# colours.
_SPARE = (("#A08A00", "X"), ("#000000", "*"))
_MORE = (
    *(("#332288", "h"), ("#AA4499", "p"), ("#44AA99", "<"), ("#882255", ">"), ("#999933", "d"), ("#6699CC", "H")),
    ("#CC6677", "8"),
)
_NAMES = {"none": "none (no condensed)", "real": "KD on real data"}
_GAP = 0.165
"""Smallest distance of two labels, in inches."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.105, 0.735, 0.97, 0.2
_DPI = 200
_WIDTH, WIDE = 5.5, 7.2
"""Widths of figures in inches: most figures, and figures with panels side by side."""
ArmStyles = Mapping[str, tuple[str, str]]
"""Colour and marker of each arm."""


class Inline(Figure):
    """A figure that a notebook displays, without pyplot and with any backend."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, and the size in which it is shown, in CSS pixels."""
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        return figure_bytes(self, "png"), {"width": width, "height": height}


@dataclass(frozen=True)
class Label:
    """Text to place right of the axes, connected to the data point (x, y) of `axes`."""

    axes: Axes
    x: float
    y: float
    text: str
    color: str


def name(arm: str) -> str:
    """Return the name of an arm in figures."""
    return _NAMES.get(arm, arm)


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a style for each arm: a fixed one for a standard arm, and for others, in their order, an unused one."""
    named = sorted(set(arms), key=arm_rank)
    free = [*_SPARE, *(arm_style for arm, arm_style in _STANDARD.items() if arm not in named and arm != "none"), *_MORE]
    others = [arm for arm in named if arm not in _STANDARD]
    # Once all free styles are used, their colours are combined with other markers.
    markers = [marker for _, marker in free]
    given = {arm: (free[i % len(free)][0], markers[(i + i // len(free)) % len(free)]) for i, arm in enumerate(others)}
    return {arm: _STANDARD[arm] if arm in _STANDARD else given[arm] for arm in named}


def dark(color: str) -> tuple[float, ...]:
    """Return a darker shade of a colour, for text."""
    return tuple(0.8 * part for part in to_rgb(color))


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation (n - 1); 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def over_seeds(counts: set[int], points: str = "", spread: str = "bars and bands") -> str:
    """Return the sentence of a caption with the number of seeds and, if a spread is drawn, with its meaning.

    `counts`: numbers of seeds that occur. `points`: text to insert. `spread`: marks that show the spread; "" for none.
    """
    if counts == {1}:
        return "One seed (n = 1), so no spread is known."
    n = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f"Means over n = {n} seeds{points}" + (f"; {spread}: ±1 standard deviation." if spread else ".")


def canvas(height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """Return a figure 5.5 inches wide and its panels, one above the other, with space for labels at the right.

    `height`: of the figure in inches. `ratios`: relative heights of the panels.
    """
    place = {"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM, "hspace": 0.07, "height_ratios": ratios}
    return panels((_WIDTH, height), len(ratios), 1, place)


def rows(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Return a figure 5.5 inches wide with a row per label, the first on top, and space for short text at the right."""
    foot, head = 0.75, 0.1
    height = foot + head + 0.26 * max(len(labels), 2)
    left = min(0.2 + 0.064 * max(map(len, labels)), 0.5 * _WIDTH)
    edges = {"left": left / _WIDTH, "right": 1 - 0.85 / _WIDTH, "top": 1 - head / height, "bottom": foot / height}
    figure, (axes,) = panels((_WIDTH, height), 1, 1, edges)
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=range(len(labels)), yticklabels=labels)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    return figure, axes


def tiles(count: int, foot: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` small panels over rounds, three per row, and `foot` inches for a legend below."""
    lines, across = -(-count // 3), min(count, 3)
    height = 1.65 * lines + foot
    top, bottom = 1 - 0.22 / height, foot / height
    place = {"left": 0.065, "right": 0.985, "top": top, "bottom": bottom, "hspace": 0.42, "wspace": 0.26}
    figure, drawn = panels((WIDE, height), lines, across, place)
    for axes in drawn[count:]:
        axes.remove()
    for axes in drawn[count - across : count]:
        axes.set_xlabel("round")
    return figure, drawn[:count]


def panels(
    size: tuple[float, float], lines: int, across: int, place: dict[str, Any], sharex: Literal["none", "col"] = "none"
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `size` inches with panels row by row; `place`: arguments of their GridSpec."""
    figure = Inline(figsize=size)
    FigureCanvasAgg(figure)
    return figure, [*figure.subplots(lines, across, sharex=sharex, squeeze=False, gridspec_kw=place).flat]


def grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Draw thin grid lines behind the data."""
    axes.grid(True, axis=axis)
    axes.set_axisbelow(True)


def whole_numbers(axes: Axes, most: int = 10) -> None:
    """Place the ticks of rounds or trials at integers, at most `most` of them."""
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def at_ipc(records: Iterable[Record], ipc: int) -> dict[str, list[Record]]:
    """Return, by arm, the trials at `ipc`, or those without condensed images if the arm has none at `ipc`."""
    return {arm: members for (arm, own), members in groups(records).items() if own in (0, ipc)}


def largest_ipc(records: Iterable[Record]) -> tuple[int, str]:
    """Return the largest IPC of these trials (0 without condensed images), and the text for it in a caption."""
    largest = max((record.ipc for record in records), default=0)
    return largest, f" at IPC {largest}" if largest else ""


def finished(figure: Figure, caption: str, labels: Sequence[Label] = ()) -> Figure:
    """Add the labels beside their points, and the caption in small print at the bottom; return the figure."""
    if labels:
        _place(figure, labels)
    figure.text(0.012, 0.015, caption, fontsize=6.5, color=GREY, va="bottom")
    return figure


def _place(figure: Figure, labels: Sequence[Label]) -> None:
    """Place the labels right of the axes and move them apart vertically as far as needed."""
    for axes in figure.axes:
        # Autoscaling is delayed until the limits are read, and transData below does not read them.
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    texts = [figure.text(0, 0, one.text, color=dark(one.color), va="center", fontsize=8) for one in labels]
    share = _widened(figure, max(text.get_window_extent().width for text in texts) / figure.dpi)
    to_figure = figure.transFigure.inverted()
    anchors = [to_figure.transform(label.axes.transData.transform((label.x, label.y))) for label in labels]
    heights = separated([float(y) for _, y in anchors], _GAP / figure.get_figheight(), _BOTTOM, _TOP - 0.01)
    for label, text, (x, y), height in zip(labels, texts, anchors, heights, strict=True):
        text.set_position((share * (_RIGHT + 0.035), height))
        ends = [x, share * (_RIGHT + 0.028)]
        figure.add_artist(Line2D(ends, [y, height], color=label.color, lw=0.5, alpha=0.6))


def _widened(figure: Figure, label: float) -> float:
    """Widen the figure for a label of `label` inches; return the old width as a share of the new width.

    The panels keep their size in inches.
    """
    width = figure.get_figwidth()
    wider = max(width, (_RIGHT + 0.035) * width + label + 0.05)
    share = width / wider
    figure.set_figwidth(wider)
    for axes in figure.axes:
        left, bottom, across, high = axes.get_position().bounds
        axes.set_position((share * left, bottom, share * across, high))
    return share


def separated(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions in [low, high], at least `gap` apart and in the order of `wanted`, closest in least squares."""
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(len(wanted))
    free = isotonic_regression(np.asarray(wanted)[order] - offsets).x
    placed = np.empty(len(wanted))
    placed[order] = np.clip(free, low, max(low, high - offsets[-1])) + offsets
    return placed.tolist()


@styled
def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return the contents of a file with the figure, without dates. `kind`: its format, such as `png` or `svg`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save(path: Path, figure: Figure | None) -> None:
    """Write the figure, without dates, in the format of the path's suffix; for None, remove an existing file.

    An outdated file would contradict the tables beside it.
    """
    if figure is None:
        path.unlink(missing_ok=True)
        return
    atomic_write(path, figure_bytes(figure, path.suffix[1:]))
