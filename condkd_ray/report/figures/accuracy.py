"""Test score by arm and images per class as a figure for a paper; draws and saves all figures of an experiment.

Drawn without pyplot, so no global state changes and equal records give byte-identical SVG files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from condkd_ray.core.records import Manifest, Record, arm_rank
from condkd_ray.core.task import is_dense
from condkd_ray.report.figures import style
from condkd_ray.report.figures.memory import held_figure
from condkd_ray.report.figures.rounds import curves_figure, diagnosis_figure
from condkd_ray.report.statistics import Baseline, groups, score_of, tested
from condkd_ray.report.tables import teachers

_DODGE = 0.02
"""Largest shift between neighbouring curves, as a share of the axis, so that their error bars do not overlap."""
_MARGIN = 0.06
"""Smallest share of the axis left free beyond the smallest and the largest IPC."""
_BREAK = 0.8
"""References are drawn beyond a break of the axis if they are more than this many heights of the data above the data.

In the figure with a row per arm, `real` is then only given as a number.
"""


Found = Mapping[tuple[str, int], np.ndarray]
"""Test scores of the seeds in percent, by arm and IPC."""


@dataclass(frozen=True)
class _Level:
    """A horizontal line at the score, in percent, of an arm without condensed images or of the teacher."""

    label: str
    color: str
    style: str
    mean: float
    std: float
    reference: bool
    """True if the line may be drawn beyond a break of the axis; False for `none`, with which the arms are compared."""

    @property
    def ends(self) -> list[float]:
        return [self.mean - self.std, self.mean + self.std]


FIGURES = ("figure", "curves", "diagnosis", "histograms")
"""Names of the figures' files, without suffixes."""


def save(out: Path, drawn: Mapping[str, Figure | None]) -> None:
    """Write `figure.svg` and a PNG file per figure to `out`; remove the old file of a figure that is None."""
    style.save(Path(out) / "figure.svg", drawn["figure"])
    for stem, figure in drawn.items():
        style.save(Path(out) / f"{stem}.png", figure)


MOST_ARMS = 50
"""Largest number of arms in the figures (our choice): a row of each of some hundred arms makes a picture too high to be
written."""


@style.styled
def draw(records: Sequence[Record], manifest: Manifest) -> dict[str, Figure | None]:
    """Return the figures by the names of their files; None for a figure without data.

    They show the first `MOST_ARMS` arms with finished trials, baselines before the others, and state how many are left
    out.
    """
    finished = [record for record in records if record.status == "finished"]
    shown, left_out = _first_arms(finished, manifest.baseline)
    finished = [record for record in finished if record.arm in shown]
    styles = arm_styles(records, manifest)
    ipcs = {trial["ipc"] for trial in manifest.planned} | {record.ipc for record in records}
    accuracy = _accuracy_figure if len(ipcs - {0}) > 1 else dots_figure
    found = {
        "figure": accuracy(finished, manifest, styles),
        "curves": curves_figure(finished, styles),
        "diagnosis": diagnosis_figure(finished, styles),
        "histograms": held_figure(finished, styles),
    }
    if left_out:
        for figure in filter(None, found.values()):
            words = f"{left_out} more arms are in the tables"
            figure.text(0.99, 1 - 0.02 / figure.get_figheight(), words, ha="right", va="top", fontsize=6.5)
    return found


def _first_arms(finished: Sequence[Record], baseline: Baseline) -> tuple[set[str], int]:
    """Return the arms that figures show, and the number of those that they leave out."""
    baselines = {baseline} if isinstance(baseline, str) else set(baseline.values())
    arms = sorted({record.arm for record in finished}, key=lambda arm: (arm not in baselines, arm_rank(arm)))
    return set(arms[:MOST_ARMS]), max(0, len(arms) - MOST_ARMS)


def arm_styles(records: Sequence[Record], manifest: Manifest) -> style.ArmStyles:
    """Return the styles of all planned and recorded arms, so that none changes while an experiment runs."""
    return style.arm_styles([*(trial["arm"] for trial in manifest.planned), *(record.arm for record in records)])


def _tested(records: Sequence[Record]) -> Found:
    """Return the test scores of the tested records, in percent, by arm and IPC."""
    found, metric = groups(tested(records)), score_of(records).test
    return {key: np.array([100 * one.metrics[metric] for one in members]) for key, members in found.items()}


def _accuracy_figure(records: Sequence[Record], manifest: Manifest, styles: style.ArmStyles) -> Figure | None:
    found = _tested(records)
    if not found:
        return None
    levels, curves = _levels(found, manifest, styles), _curves(found)
    limits = _limits(levels, curves)
    score = score_of(records, manifest)
    figure, panels = style.canvas(3.5, (1, 3.2) if len(limits) > 1 else (1,))
    ipcs = sorted({ipc for _, ipc in found if ipc})
    labels: list[style.Label] = []
    for axes, bounds in zip(panels, limits, strict=True):
        axes.set_ylim(*bounds)
        _ipc_axis(axes, ipcs, len(curves), "condensed images" + " per class (IPC)" * (not is_dense(score.task)))
        labels += [_draw_level(axes, level) for level in levels if bounds[0] <= level.mean <= bounds[1]]
    for place, (arm, points) in enumerate(curves.items()):
        aside = _dodge(len(curves)) * (place - (len(curves) - 1) / 2)
        labels.append(_draw_curve(panels[-1], arm, points, styles[arm], aside))
    if len(panels) > 1:
        _mark_break(panels)
    figure.supylabel(f"test {score.name} (%)", x=0.012, y=0.585, fontsize=8)
    axis = "\nThe vertical axis is broken; its parts differ in scale." if len(panels) > 1 else ""
    return style.finished(figure, _over_seeds(found, bool(curves)) + axis, labels)


def _levels(found: Found, manifest: Manifest, styles: style.ArmStyles) -> list[_Level]:
    levels = []
    for (arm, ipc), values in found.items():
        if ipc == 0:
            mean, std, color = float(values.mean()), style.deviation(values), styles[arm][0]
            none = arm == "none"
            label = style.name(arm) if none else f"{style.name(arm)}, {mean:.1f}"
            levels.append(_Level(label, color, "-" if none else "-.", mean, std, reference=not none))
    if teacher := teachers.accuracy(manifest):
        word, mean = teacher[0], 100 * teacher[1]
        levels.append(_Level(f"{word}, {mean:.1f}", "#000000", "--", mean, 0.0, reference=True))
    return levels


def _curves(found: Found) -> dict[str, dict[int, np.ndarray]]:
    """Return the scores by arm and IPC, of the arms with condensed images."""
    curves: dict[str, dict[int, np.ndarray]] = {}
    for (arm, ipc), values in found.items():
        if ipc:
            curves.setdefault(arm, {})[ipc] = values
    return curves


def _limits(levels: Sequence[_Level], curves: Mapping[str, Mapping[int, np.ndarray]]) -> list[tuple[float, float]]:
    """Return the vertical range of each panel, top first: two panels if one would compress the data too much."""
    data = [value for points in curves.values() for values in points.values() for value in _extent(values)]
    data += [end for level in levels if not level.reference for end in level.ends]
    above = [end for level in levels if level.reference for end in level.ends]
    if curves and above and _far(above, data):
        return [_padded(above, 0.35, 0.7), _padded(data)]
    return [_padded(data + above)]


def _extent(values: np.ndarray) -> list[float]:
    """Return the scores of the single seeds, and their mean plus and minus one standard deviation."""
    mean, std = float(values.mean()), style.deviation(values)
    return [*values.tolist(), mean - std, mean + std]


def _far(references: Sequence[float], data: Sequence[float]) -> bool:
    return min(references) - max(data) > _BREAK * max(max(data) - min(data), 2.0)


def _padded(values: Sequence[float], share: float = 0.06, least: float = 0.12) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(share * (high - low), least)
    return low - pad, high + pad


def _dodge(curves: int) -> float:
    """Return the shift between neighbours among `curves` curves, as a share of the axis."""
    return min(_DODGE, 0.8 / max(curves, 1))


def _ipc_axis(axes: Axes, ipcs: Sequence[int], curves: int, label: str) -> None:
    """Set a logarithmic IPC axis with this label, wide enough for the outermost curves and their seeds' points."""
    axes.set_xscale("log")
    low, high = (ipcs[0], ipcs[-1]) if ipcs else (1, 1)
    share = max(_MARGIN, _dodge(curves) * (curves + 1) / 2)
    margin = (high / low) ** (share / (1 - 2 * share)) if high > low else 2.0
    axes.set_xlim(low / margin, high * margin)
    axes.set_xticks(ipcs, [f"{ipc:g}" for ipc in ipcs])
    axes.xaxis.minorticks_off()
    style.grid(axes, "y")
    if ipcs:
        axes.set_xlabel(label)


def _draw_level(axes: Axes, level: _Level) -> style.Label:
    axes.axhline(level.mean, color=level.color, ls=level.style, lw=1.0, zorder=2)
    if level.std:
        axes.axhspan(*level.ends, color=level.color, alpha=0.15, lw=0, zorder=1)
    return style.Label(axes, axes.get_xlim()[1], level.mean, level.label, level.color)


def _draw_curve(
    axes: Axes, arm: str, points: Mapping[int, np.ndarray], arm_style: tuple[str, str], aside: float
) -> style.Label:
    """Draw an arm's curve, its error bars and its single seeds, shifted by the share `aside` of the axis."""
    color, marker = arm_style
    left, right = axes.get_xlim()
    at = np.array(list(points)) * (right / left) ** aside
    for x, seeds in zip(at * (right / left) ** (0.4 * _DODGE), points.values(), strict=True):
        if len(seeds) > 1:
            axes.plot(np.full(len(seeds), x), seeds, ls="", marker=".", ms=3.2, mew=0, color=color, alpha=0.6, zorder=3)
    means, stds = (np.array([of(seeds) for seeds in points.values()]) for of in (np.mean, style.deviation))
    axes.plot(at, means, color=color, marker=marker, ms=4.5, mec="white", mew=0.6, lw=1.3, zorder=4)
    if stds.any():
        axes.errorbar(at, means, stds, ls="", color=color, elinewidth=0.9, zorder=4)
    return style.Label(axes, float(at[-1]), float(means[-1]), style.name(arm), color)


def _mark_break(panels: Sequence[Axes]) -> None:
    """Mark the break of the vertical axis with two slanted strokes."""
    upper, lower = panels
    upper.spines.bottom.set_visible(False)
    upper.tick_params(axis="x", length=0, labelbottom=False)
    upper.set_xlabel("")
    upper.yaxis.set_major_locator(MaxNLocator(3))
    for axes, height in ((upper, 0), (lower, 1)):
        axes.plot([0], [height], transform=axes.transAxes, marker=[(-1, -0.5), (1, 0.5)], ms=8, ls="", color="black",
                  mew=0.7, clip_on=False)  # fmt: skip


def _over_seeds(found: Found, points: bool, spread: str = "bars and bands") -> str:
    """Return the caption's sentence on seeds; `points`: single seeds are drawn as points if there are several."""
    counts = {len(values) for values in found.values()}
    return style.over_seeds(counts, " (small points: single seeds)" if points and counts != {1} else "", spread)


def dots_figure(records: Sequence[Record], manifest: Manifest, styles: style.ArmStyles) -> Figure | None:
    """Draw a row per arm, for experiments with at most one IPC; None without a tested trial.

    A row shows the mean, the standard deviation and the single seeds; the baseline's mean is a vertical line.
    """
    found = _tested(records)
    if not found:
        return None
    arms = [arm for arm, _ in found]
    several = len(set(arms)) < len(arms)
    labels = [style.name(arm) + (f", IPC {ipc}" if several and ipc else "") for arm, ipc in found]
    figure, axes = style.rows(labels)
    low, high = _row_limits(found)
    for place, ((arm, _), values) in enumerate(found.items()):
        _draw_row(axes, place, values, styles[arm], high)
        if arm == manifest.baseline and values.mean() <= high:
            axes.axvline(float(values.mean()), color=styles[arm][0], lw=0.9, ls="--", zorder=1)
    axes.set_xlim(low, high)
    ipc = max(ipc for _, ipc in found)
    axes.set_xlabel(f"test {score_of(records, manifest).name} (%){f' at IPC {ipc}' if ipc else ''}")
    return style.finished(figure, _rows_caption(found, arms, manifest))


def _draw_row(axes: Axes, place: int, values: np.ndarray, arm_style: tuple[str, str], high: float) -> None:
    color, marker = arm_style
    mean, std = float(values.mean()), style.deviation(values)
    text = f"{mean:.1f}" + (f" ± {std:.1f}" if len(values) > 1 else "")
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=style.dark(color))
    if mean > high:
        axes.plot([0.985], [place], transform=axes.get_yaxis_transform(), marker=">", ms=5, color=color, ls="")
        return
    if len(values) > 1:
        axes.plot(values, np.full(len(values), place + 0.24), ls="", marker=".", ms=3.6, mew=0, color=color, alpha=0.7)
        axes.errorbar([mean], [place], xerr=[std], ls="", color=color, elinewidth=1.0, zorder=3)
    axes.plot([mean], [place], **style.POINT, marker=marker, ms=5.5, mew=0.6, color=color, zorder=4)


def _row_limits(found: Found) -> tuple[float, float]:
    real = [value for (arm, _), values in found.items() if arm == "real" for value in _extent(values)]
    data = [value for (arm, _), values in found.items() if arm != "real" for value in _extent(values)]
    beyond = bool(real and data) and _far(real, data)
    return _padded(data if beyond else data + real, least=0.5)


def _rows_caption(found: Found, arms: Sequence[str], manifest: Manifest) -> str:
    teacher = teachers.accuracy(manifest)
    parts = [f"Dashed: {style.name(arm)}." for arm in dict.fromkeys(arms) if arm == manifest.baseline]
    parts += [f"{teacher[0].capitalize()}: {100 * teacher[1]:.1f} %."] if teacher else []
    return _over_seeds(found, True, "bars") + (f"\n{' '.join(parts)}" if parts else "")
