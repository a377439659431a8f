"""Figure of the memories at the end: histograms of the classes of the images, and of the teacher's confidence."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from condkd_ray.core.records import Record
from condkd_ray.report.figures import style

_ROW, _FOOT, _HEAD = 0.72, 0.85, 0.3
"""Heights of a row, of the caption and of the titles, in inches."""
_WHISKERS = 25
"""Largest number of bars with error bars; more of them would overlap."""


def held_figure(records: Sequence[Record], styles: style.ArmStyles) -> Figure | None:
    """Return a figure with a row per arm, at the largest IPC or without condensed images; None without any images."""
    largest, at = style.largest_ipc(records)
    found = style.at_ipc([record for record in records if record.outcome.held], largest)
    if not found:
        return None
    height = _HEAD + _ROW * len(found) + _FOOT
    left, right = 0.09 + 0.0085 * max(len(style.name(arm)) for arm in found), 0.985
    top, bottom = 1 - _HEAD / height, (_FOOT - 0.15) / height
    place = {"left": left, "right": right, "top": top, "bottom": bottom, "hspace": 0.3, "wspace": 0.16}
    figure, drawn = style.panels((style.WIDE, height), len(found), 2, place, sharex="col")
    lines = list(zip(drawn[::2], drawn[1::2], strict=True))
    for row, (arm, members) in zip(lines, found.items(), strict=True):
        color = styles[arm][0]
        shares = [_shares(members, kind) for kind in ("class", "confidence")]
        for axes, values in zip(row, shares, strict=True):
            _bars(axes, values, color)
        _label(row, arm, shares, color)
    _frame(lines)
    seeds = style.over_seeds({len(members) for members in found.values()}, spread="whiskers")
    what = (
        f"Synthetic images in the memory at the end{at}, by the teacher's predictions. Dashed: even classes; uneven: "
    )
    return style.finished(figure, f"{what}share of the\nimages that would have to be of another class. {seeds}")


def _shares(members: Sequence[Record], kind: str) -> np.ndarray:
    """Return the share of each bin in percent, shape (seeds, bins)."""
    counts = np.array([one.outcome.held[kind] for one in members], dtype=float)
    return 100 * counts / counts.sum(1, keepdims=True)


def _bars(axes: Axes, shares: np.ndarray, color: str) -> None:
    bins = shares.shape[1]
    spread = shares.std(0, ddof=1) if len(shares) > 1 and bins <= _WHISKERS else None
    axes.bar(np.arange(bins), shares.mean(0), 0.85, color=color, alpha=0.75, yerr=spread,
             error_kw={"elinewidth": 0.7, "ecolor": style.dark(color)})  # fmt: skip
    axes.set_xlim(-0.7, bins - 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(length=2)


def _label(row: Sequence[Axes], arm: str, shares: Sequence[np.ndarray], color: str) -> None:
    """Write the arm's name and, per histogram, a statistic that is computed for each seed and then averaged.

    The mean histogram over the seeds would hide uneven classes of single seeds.
    """
    left, right = row
    classes, confidence = shares
    even = 100 / classes.shape[1]
    left.axhline(even, color=style.GREY, lw=0.7, ls="--", zorder=3)
    uneven = np.abs(classes - even).sum(1).mean() / 2
    middles = (np.arange(confidence.shape[1]) + 0.5) / confidence.shape[1]
    sure = (confidence / 100 @ middles).mean()
    beside = {"transform": left.transAxes, "ha": "right", "va": "center"}
    left.text(-0.13, 0.5, style.name(arm), color=style.dark(color), fontsize=8, **beside)
    for axes, text in ((left, f"uneven: {uneven:.1f} %"), (right, f"mean {sure:.2f}")):
        axes.set_title(text, fontsize=6.5, loc="right", pad=1, color=style.GREY)


def _frame(panels: Sequence[Sequence[Axes]]) -> None:
    """Give each column of panels one vertical scale, and set titles and axis labels."""
    for column, title in enumerate(("share of each class (%)", "share of each confidence (%)")):
        axes = [row[column] for row in panels]
        top = max(one.get_ylim()[1] for one in axes)
        for one in axes:
            one.set_ylim(0, top)
        axes[0].set_title(title, fontsize=8, loc="left", pad=9)
    left, right = panels[-1]
    left.set_xlabel("class")
    right.set_xlabel("the teacher's confidence")
    classes, bins = len(left.patches), len(right.patches)
    left.xaxis.set_major_locator(FixedLocator(range(classes)) if classes <= _WHISKERS else MaxNLocator(10))
    right.set_xticks(np.linspace(0, bins, 6) - 0.5, [f"{value:.1f}" for value in np.linspace(0, 1, 6)])
