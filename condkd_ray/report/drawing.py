"""What both figures share: the look of an arm, labels that keep apart, and files that come out equal each time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from condkd_ray.report.records import atomic_write

STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "svg.hashsalt": "condkd_ray", "svg.fonttype": "none",
}  # fmt: skip
GREY = "#555555"
# Okabe and Ito's colours, which the colour-blind tell apart; the markers tell them apart in grey.
_LOOK = {
    "none": (GREY, "o"), "condensed_only": ("#E69F00", "s"), "mixed": ("#0072B2", "o"),
    "guided": ("#D55E00", "D"), "guided_only": ("#CC79A7", "^"), "real": ("#009E73", "v"),
}  # fmt: skip
_SPARE = (("#56B4E9", "P"), ("#A08A00", "X"), ("#000000", "*"))
_NAMES = {"none": "none (no condensed)", "real": "KD on real data"}
_GAP = 0.05
"""Least distance of two labels, in figure heights."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.105, 0.735, 0.97, 0.2
_DPI = 200


@dataclass(frozen=True)
class Label:
    """Text to stand right of the axes, tied to the data point (x, y) of `axes`."""

    axes: Axes
    x: float
    y: float
    text: str
    color: str


def name(arm: str) -> str:
    """How a figure calls an arm."""
    return _NAMES.get(arm, arm)


def look(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; one that is not of the standard six gets a spare pair by its name."""
    return _LOOK.get(arm) or _SPARE[sum(arm.encode()) % len(_SPARE)]


def canvas(height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of paper width (5.5 inches) with panels one above the other and room for labels at the right."""
    figure = Figure(figsize=(5.5, height))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(ratios), 1, height_ratios=list(ratios), hspace=0.07, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM
    )
    return figure, [figure.add_subplot(grid[row, 0]) for row in range(len(ratios))]


def caption(figure: Figure, text: str) -> None:
    """Small print at the foot."""
    figure.text(0.012, 0.015, text, fontsize=6.5, color=GREY, va="bottom")


def place_labels(figure: Figure, labels: Sequence[Label]) -> None:
    """Set labels beside their points, moved apart just as far as needed."""
    for axes in figure.axes:
        # Autoscaling waits for somebody to ask; transData does not ask.
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    to_figure = figure.transFigure.inverted()
    anchors = [to_figure.transform(label.axes.transData.transform((label.x, label.y))) for label in labels]
    heights = keep_apart([float(y) for _, y in anchors], _GAP, _BOTTOM, _TOP - 0.01)
    for label, (x, y), height in zip(labels, anchors, heights, strict=True):
        ink = tuple(0.8 * part for part in to_rgb(label.color))
        figure.text(_RIGHT + 0.035, height, label.text, color=ink, va="center", fontsize=8)
        figure.add_artist(Line2D([x, _RIGHT + 0.028], [y, height], color=label.color, lw=0.5, alpha=0.6))


def keep_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in [low, high], at least `gap` apart in the order of `wanted`, nearest to it in least squares."""
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    offsets = gap * np.arange(len(wanted))
    free = isotonic_regression(np.asarray(wanted)[order] - offsets).x
    placed = np.empty(len(wanted))
    placed[order] = np.clip(free, low, max(low, high - offsets[-1])) + offsets
    return placed.tolist()


def save(path: Path, figure: Figure | None) -> None:
    """Write the figure in the format of the suffix, without dates; with None remove an older one.

    A picture of an earlier state would contradict the tables beside it.
    """
    if figure is None:
        path.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    kind = path.suffix[1:]
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    atomic_write(path, buffer.getvalue())
