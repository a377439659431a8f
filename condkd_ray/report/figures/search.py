"""The figures of a search's page: proxy against test score, objective, parameter importance and Pareto front."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condkd_ray.core.records import Record
from condkd_ray.report.figures import style
from condkd_ray.report.statistics import of_arms, score_of
from condkd_ray.study.importance import Importance

_BLUE, _ORANGE = "#0072B2", "#D55E00"
COLOURS = (_BLUE, _ORANGE, "#009E73", "#CC79A7")
"""Colours of the lines with a label."""


@style.styled
def proxy_plot(records: Sequence[Record], proxy: str, styles: style.ArmStyles | None) -> Figure | None:
    """Return a figure with a point per trial, coloured by arm if `styles` is given.

    None if fewer than two trials have both metrics.
    """
    score = score_of(records)
    both = (proxy, score.test)
    shown = [one for one in records if np.isfinite([one.metrics.get(key, np.nan) for key in both]).all()]
    if len(shown) < 2:
        return None
    figure, (axes,) = style.canvas(3.4)
    by_arm = of_arms(shown)
    parts = {arm: by_arm[arm] for arm in styles if arm in by_arm} if styles else {"": shown}
    labels = []
    for arm, members in parts.items():
        color, marker = styles[arm] if styles else (_BLUE, "o")
        x, y = (np.array([one.metrics[key] for one in members]) for key in both)
        # A star needs a larger size, because its points are thin.
        size = 8.5 if marker == "*" else 4.5
        axes.plot(x, 100 * y, **style.POINT, marker=marker, ms=size, mew=0.5, color=color, alpha=0.85)
        last = int(x.argmax())
        labels += [style.Label(axes, float(x[last]), float(100 * y[last]), style.name(arm), color)] if styles else []
    _frame(axes, proxy, f"test {score.name} (%)")
    ties = " A label's line ends at the rightmost point of its arm." if labels else ""
    caption = f"n = {len(shown)} trials, one point each.{ties}"
    return style.finished(figure, caption, labels if len(labels) <= 14 else ())


@style.styled
def course_plot(values: Sequence[float], direction: str, objective: str) -> Figure | None:
    """Return a figure of the objective of each trial in the order of proposal, and of the best so far.

    `values`: one per trial, NaN for a trial without an objective. None if no trial has one.
    """
    found = np.array(values, dtype=float)
    if not np.isfinite(found).any():
        return None
    best = (np.fmin if direction == "minimize" else np.fmax).accumulate(found)
    figure, (axes,) = style.canvas(3.1)
    numbers = np.arange(len(found))
    axes.plot(numbers, found, **style.POINT, marker="o", ms=3.8, mew=0.5, color=style.GREY, alpha=0.7)
    axes.step(numbers, best, where="post", color=_BLUE, lw=1.4)
    _frame(axes, "trial, in the order of proposals", objective)
    labels = [style.Label(axes, numbers[-1], best[-1], "best so far", _BLUE)]
    return style.finished(figure, f"n = {int(np.isfinite(found).sum())} finished trials, one point each.", labels)


@style.styled
def rounds_plot(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], objective: str, named: int) -> Figure:
    """Return a figure of the objective over the rounds, a line per trial.

    `curves`: rounds and values, by trial. The first `named` lines are coloured and have labels, the others are grey.
    """
    figure, (axes,) = style.canvas(3.1)
    labels = []
    for place, (trial, (rounds, values)) in enumerate(curves.items()):
        color = COLOURS[place] if place < named else "#BBBBBB"
        axes.plot(rounds, values, color=color, lw=1.4 if place < named else 0.7, zorder=2 + (place < named),
                  marker="o", markevery=[-1], ms=2.5)  # fmt: skip
        labels += [style.Label(axes, rounds[-1], values[-1], trial, color)] if place < named else []
    style.whole_numbers(axes, 8)
    _frame(axes, "round", objective)
    caption = f"n = {len(curves)} trials, one line each; the best in colours; a dot marks the end of a trial."
    return style.finished(figure, caption, labels)


@style.styled
def importance_plot(found: Sequence[Importance], trials: int) -> Figure | None:
    """Return a figure with a bar per parameter and the range of its bootstrap; None without parameters."""
    if not found:
        return None
    figure, axes = style.rows([one.name for one in found])
    places, shares = np.arange(len(found)), np.array([one.share for one in found])
    axes.barh(places, shares, 0.55, color="#8FC1E3")
    axes.hlines(places, [one.low for one in found], [one.high for one in found], color="#1C2430", lw=1.1)
    for place, one in enumerate(found):
        text = f"{one.share:.2f}"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=style.GREY)
    axes.set(xlim=(0, 1), xlabel="share of importance")
    return style.finished(figure, f"n = {trials} complete trials. Lines: the middle 90 % of bootstrap resamples.")


@style.styled
def front_plot(points: np.ndarray, front: Sequence[int], names: Sequence[str], objectives: Sequence[str]) -> Figure:
    """Return a figure of the first two objectives of each trial, with the trials of the front labelled and joined.

    `points`: values (trials, objectives). `front`: rows of the trials on the front. `names`: labels of all trials.
    """
    figure, (axes,) = style.canvas(3.4)
    axes.plot(points[:, 1], points[:, 0], **style.POINT, marker="o", ms=4, mew=0.5, color=style.GREY, alpha=0.6)
    best = sorted(front, key=lambda i: points[i, 1])
    axes.plot(points[best, 1], points[best, 0], color=_ORANGE, marker="D", ms=4.5, mec="white", mew=0.5, lw=1.0)
    for i in best[:12]:
        axes.annotate(names[i], (points[i, 1], points[i, 0]), (4, 4), textcoords="offset points", fontsize=7)
    _frame(axes, objectives[1], objectives[0])
    caption = f"n = {len(points)} complete trials; diamonds: no other is better in every objective."
    return style.finished(figure, caption)


def _frame(axes: Axes, below: str, beside: str) -> None:
    style.grid(axes)
    axes.set(xlabel=below, ylabel=beside)
