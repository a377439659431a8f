"""Figures over the rounds: test score measured during training, and the diagnosis of the synthetic images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condkd_ray.core.records import Record
from condkd_ray.report.figures import style
from condkd_ray.report.statistics import score_of
from condkd_ray.report.tables.arms import test_images

_PANELS = {
    "diagnosis/frechet_real": "Frechet distance to real",
    "diagnosis/frechet_condensed": "Frechet distance to condensed",
    "diagnosis/diversity": "diversity (real images: 1)",
    "diagnosis/coverage": "coverage of the guides",
    "diagnosis/nearest_guide": "to the nearest guide (real: 1)",
    "diagnosis/gap": "KL of teacher and student",
}
_AS_REAL = ("diagnosis/diversity", "diagnosis/nearest_guide")
_LEGEND_COLUMNS, _ROOM = 4, 120
"""Largest number of columns of the legend, and of letters in one of its rows; a line sample takes ten letters."""
_MOST_BANDS = 6
"""Largest number of arms with bands; more of them would hide one another."""


def curves_figure(records: Sequence[Record], styles: style.ArmStyles) -> Figure | None:
    """Return a figure of the test score of arms by round, at the largest IPC or without condensed images.

    None if no round of them was measured.
    """
    largest, at = style.largest_ipc(records)
    arms = style.at_ipc(records, largest)
    score = score_of(records)
    shown = _by_arm(arms, score.test)
    if not shown:
        return None
    figure, (axes,) = style.canvas(max(3.0, 0.6 + 0.17 * len(shown)))
    labels = [_draw(axes, arm, rounds, 100 * values, styles, len(shown)) for arm, (rounds, values) in shown.items()]
    images = test_images([record for members in arms.values() for record in members])
    axes.set(xlabel=f"round (measured on {images} test images)", ylabel=f"test {score.name} (%)")
    style.whole_numbers(axes, 8)
    seeds = _over_seeds({len(values) for _, values in shown.values()}, len(shown))
    return style.finished(figure, f"Measured during training{at}. {seeds}", labels)


def diagnosis_figure(records: Sequence[Record], styles: style.ArmStyles) -> Figure | None:
    """Return a figure with a panel per metric of the diagnosis, for the same arms; None if no metric was recorded."""
    largest, at = style.largest_ipc(records)
    trials = style.at_ipc(records, largest)
    kept = {metric: curves for metric in _PANELS if (curves := _by_arm(trials, metric))}
    if not kept:
        return None
    arms = [arm for arm in trials if any(arm in curves for curves in kept.values())]
    legend_rows = -(-len(arms) // _columns([style.name(arm) for arm in arms]))
    figure, panels = style.tiles(len(kept), foot=0.9 + 0.17 * legend_rows)
    for axes, (metric, curves) in zip(panels, kept.items(), strict=True):
        axes.set_title(_PANELS[metric], fontsize=8, loc="left")
        style.whole_numbers(axes, 5)
        for arm, (rounds, values) in curves.items():
            _draw(axes, arm, rounds, values, styles, len(arms))
        if metric in _AS_REAL:
            axes.axhline(1.0, color=style.GREY, lw=0.7, ls=":", zorder=1)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    height = figure.get_figheight()
    figure.legend([lines[arm] for arm in arms], [style.name(arm) for arm in arms], loc="lower center", frameon=False,
                  ncols=-(-len(arms) // legend_rows), bbox_to_anchor=(0.5, 0.34 / height), fontsize=8)  # fmt: skip
    counts = {len(values) for curves in kept.values() for _, values in curves.values()}
    where = "Synthetic images of each measured round in the teacher's features"
    return style.finished(figure, f"{where}{at}; for the report only.\n{_over_seeds(counts, len(arms))}")


def _columns(labels: Sequence[str]) -> int:
    """Return the number of columns of a legend whose rows fit into the figure."""
    return max(1, min(_LEGEND_COLUMNS, _ROOM // (max(map(len, labels)) + 10)))


def _over_seeds(counts: set[int], arms: int) -> str:
    return style.over_seeds(counts, spread="bands" if arms <= _MOST_BANDS else "")


def _by_arm(trials: Mapping[str, Sequence[Record]], metric: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """Return, by arm, the rounds in which all seeds with the metric measured it, and the values (seeds, rounds)."""
    found = {}
    for arm, members in trials.items():
        measured = [[row for row in one.history if np.isfinite(row.get(metric, np.nan))] for one in members]
        series = [{int(row["round"]): row[metric] for row in rows} for rows in measured if rows]
        rounds = sorted(set.intersection(*map(set, series))) if series else []
        if rounds:
            found[arm] = rounds, np.array([[one[number] for number in rounds] for one in series])
    return found


def _draw(
    axes: Axes, arm: str, rounds: Sequence[int], values: np.ndarray, styles: style.ArmStyles, arms: int
) -> style.Label:
    """Draw an arm's curve, with its band if there are few arms."""
    (color, marker), line = styles[arm], "-." if arm == "real" else "-"
    mean = values.mean(0)
    style.grid(axes, "y")
    axes.plot(rounds, mean, color=color, ls=line, lw=1.3, marker=marker, markevery=[-1], ms=4, label=arm)
    if len(values) > 1 and arms <= _MOST_BANDS:
        std = values.std(0, ddof=1)
        axes.fill_between(rounds, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    return style.Label(axes, rounds[-1], float(mean[-1]), style.name(arm), color)
