"""The result as pictures for a paper: test accuracy by arm and images per class, and what else there is by round.

Drawn without pyplot, so nothing global is touched, and the same records give the same bytes of SVG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.figures import style
from condkd_ray.report.figures.memory import held_figure
from condkd_ray.report.figures.rounds import curves_figure, diagnosis_figure
from condkd_ray.report.statistics import groups
from condkd_ray.report.tables import teachers

_DODGE = 0.02
"""Neighbouring curves are this share of the axis apart, so that their bars do not cover each other."""
_BREAK = 0.8
"""References that stand this many heights of the data, or more, beyond it are drawn beyond a break of the axis; where
arms are rows, `real` is then told in words."""


@dataclass(frozen=True)
class _Level:
    """A horizontal line in percent: an arm without condensed images, or the teacher."""

    label: str
    color: str
    style: str
    mean: float
    std: float
    seeds: int
    reference: bool
    """References may stand beyond a break of the axis; `none` is what the arms are read against and may not."""


@dataclass(frozen=True)
class _Curve:
    """An arm with condensed images: IPCs, and for each the seeds' test accuracies in percent."""

    arm: str
    look: tuple[str, str]
    """Colour and marker."""
    ipcs: Sequence[int]
    points: Sequence[np.ndarray]

    @property
    def means(self) -> np.ndarray:
        return np.array([seeds.mean() for seeds in self.points])

    @property
    def stds(self) -> np.ndarray:
        return np.array([style.deviation(seeds) for seeds in self.points])


def write(out: Path, records: Sequence[Record], manifest: Manifest) -> dict[str, Figure | None]:
    """Write `figure.*`, `curves.png`, `diagnosis.png` and `histograms.png` under `out`, as far as there is data."""
    drawn = draw(records, manifest)
    style.save(Path(out) / "figure.svg", drawn["figure"])
    for stem, figure in drawn.items():
        style.save(Path(out) / f"{stem}.png", figure)
    return drawn


@style.styled
def draw(records: Sequence[Record], manifest: Manifest) -> dict[str, Figure | None]:
    """The figures by the names of their files; None where there is no data."""
    finished = [record for record in records if record.status == "finished"]
    styles = arm_looks(records, manifest)
    ipcs = {trial["ipc"] for trial in manifest.planned} | {record.ipc for record in records}
    accuracy = _accuracy_figure if len(ipcs - {0}) > 1 else dots_figure
    return {
        "figure": accuracy(finished, manifest, styles),
        "curves": curves_figure(finished, styles),
        "diagnosis": diagnosis_figure(finished, styles),
        "histograms": held_figure(finished, styles),
    }


def arm_looks(records: Sequence[Record], manifest: Manifest) -> style.Looks:
    """By what is planned, so that nothing changes its look while an experiment runs."""
    return style.looks([*(trial["arm"] for trial in manifest.planned), *(record.arm for record in records)])


def _accuracy_figure(records: Sequence[Record], manifest: Manifest, styles: style.Looks) -> Figure | None:
    levels, curves = _levels(records, manifest, styles), _curves(records, styles)
    if not curves and not any(level.seeds for level in levels):
        return None
    limits = _limits(levels, curves)
    figure, panels = style.canvas(3.5, (1, 3.2) if len(limits) > 1 else (1,))
    ipcs = sorted({ipc for curve in curves for ipc in curve.ipcs})
    labels: list[style.Label] = []
    for axes, bounds in zip(panels, limits, strict=True):
        axes.set_ylim(*bounds)
        _ipc_axis(axes, ipcs)
        shown = [level for level in levels if bounds[0] <= level.mean <= bounds[1]]
        labels += [_draw_level(axes, level) for level in shown]
    labels += [_draw_curve(panels[-1], curve, place - (len(curves) - 1) / 2) for place, curve in enumerate(curves)]
    if len(panels) > 1:
        _mark_break(panels)
    figure.supylabel("test accuracy (%)", x=0.012, y=0.585, fontsize=8)
    style.place_labels(figure, labels)
    style.caption(figure, _caption(levels, curves, broken=len(panels) > 1))
    return figure


def _levels(records: Sequence[Record], manifest: Manifest, styles: style.Looks) -> list[_Level]:
    found = []
    for (arm, ipc), members in groups(records).items():
        values = style.percents(members)
        if ipc == 0 and len(values):
            line, mean = "-" if arm == "none" else "-.", float(values.mean())
            label = style.name(arm) if arm == "none" else f"{style.name(arm)}, {mean:.1f}"
            found.append(_Level(label, styles[arm][0], line, mean, style.deviation(values), len(values), arm != "none"))
    if teacher := teachers.accuracy(manifest):
        word, mean = teacher[0], 100 * teacher[1]
        found.append(_Level(f"{word}, {mean:.1f}", "#000000", "--", mean, 0.0, 0, True))
    return found


def _curves(records: Sequence[Record], styles: style.Looks) -> list[_Curve]:
    found: dict[str, dict[int, np.ndarray]] = {}
    for (arm, ipc), members in groups(records).items():
        values = style.percents(members)
        if ipc and len(values):
            found.setdefault(arm, {})[ipc] = values
    return [_Curve(arm, styles[arm], list(points), list(points.values())) for arm, points in found.items()]


def _limits(levels: Sequence[_Level], curves: Sequence[_Curve]) -> list[tuple[float, float]]:
    """Vertical range of each panel, top panel first: one, or two where the references would crush the data."""
    data = [value for curve in curves for seeds in curve.points for value in seeds]
    data += [bound for curve in curves for side in (-1, 1) for bound in curve.means + side * curve.stds]
    data += [level.mean + side * level.std for level in levels if not level.reference for side in (-1, 1)]
    above = [level.mean + side * level.std for level in levels if level.reference for side in (-1, 1)]
    if not curves or not above:
        return [_padded(data + above)]
    low, high = min(data), max(data)
    if min(above) - high <= _BREAK * max(high - low, 2.0):
        return [_padded(data + above)]
    return [_padded(above, 0.35), _padded(data)]


def _padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    pad = share * max(high - low, 2.0)
    return low - pad, high + pad


def _ipc_axis(axes: Axes, ipcs: Sequence[int]) -> None:
    axes.set_xscale("log")
    low, high = (ipcs[0], ipcs[-1]) if ipcs else (1, 1)
    margin = (high / low) ** 0.07 if high > low else 2.0
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(list(ipcs)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    style.grid(axes, "y")
    if ipcs:
        axes.set_xlabel("condensed images per class (IPC)")


def _draw_level(axes: Axes, level: _Level) -> style.Label:
    axes.axhline(level.mean, color=level.color, ls=level.style, lw=1.0, zorder=2)
    if level.std:
        axes.axhspan(level.mean - level.std, level.mean + level.std, color=level.color, alpha=0.15, lw=0, zorder=1)
    return style.Label(axes, axes.get_xlim()[1], level.mean, level.label, level.color)


def _draw_curve(axes: Axes, curve: _Curve, place: float) -> style.Label:
    """`place`: the curve's number, counted from the middle one, by which it is moved aside to keep bars apart."""
    color, marker = curve.look
    left, right = axes.get_xlim()
    at = np.asarray(curve.ipcs) * (right / left) ** (_DODGE * place)
    for x, seeds in zip(at * (right / left) ** (0.4 * _DODGE), curve.points, strict=True):
        if len(seeds) > 1:
            axes.plot(np.full(len(seeds), x), seeds, ls="", marker=".", ms=3.2, mew=0, color=color, alpha=0.6, zorder=3)
    axes.plot(at, curve.means, color=color, marker=marker, ms=4.5, mec="white", mew=0.6, lw=1.3, zorder=4)
    if curve.stds.any():
        axes.errorbar(at, curve.means, curve.stds, ls="", color=color, elinewidth=0.9, zorder=4)
    return style.Label(axes, float(at[-1]), float(curve.means[-1]), style.name(curve.arm), color)


def _mark_break(panels: Sequence[Axes]) -> None:
    """Two slanted strokes on the vertical axis where it is cut."""
    upper, lower = panels
    upper.spines.bottom.set_visible(False)
    upper.tick_params(axis="x", length=0, labelbottom=False)
    upper.set_xlabel("")
    upper.yaxis.set_major_locator(MaxNLocator(3))
    for axes, height in ((upper, 0), (lower, 1)):
        axes.plot([0], [height], transform=axes.transAxes, marker=[(-1, -0.5), (1, 0.5)], ms=8, ls="", color="black",
                  mew=0.7, clip_on=False)  # fmt: skip


def _caption(levels: Sequence[_Level], curves: Sequence[_Curve], broken: bool) -> str:
    counts = {len(seeds) for curve in curves for seeds in curve.points} | {one.seeds for one in levels if one.seeds}
    points = " (small points: single seeds)" if curves and counts != {1} else ""
    axis = "\nThe vertical axis is broken; its parts differ in scale." if broken else ""
    return style.over_seeds(counts, points) + axis


def dots_figure(records: Sequence[Record], manifest: Manifest, looks: style.Looks) -> Figure | None:
    """A row an arm, where at most one number of condensed images was tried; None without a tested trial.

    Means, deviations and single seeds of each arm, and the baseline as a line.
    """
    found = {key: values for key, members in groups(records).items() if len(values := style.percents(members))}
    if not found:
        return None
    arms = [arm for arm, _ in found]
    several = len(set(arms)) < len(arms)
    labels = [style.name(arm) + (f", IPC {ipc}" if several and ipc else "") for arm, ipc in found]
    figure, axes = style.rows(labels)
    low, high = _row_limits(found)
    for place, ((arm, _), values) in enumerate(found.items()):
        _draw_row(axes, place, values, looks[arm], high)
    for (arm, _), values in found.items():
        if arm == manifest.baseline and values.mean() <= high:
            axes.axvline(float(values.mean()), color=looks[arm][0], lw=0.9, ls="--", zorder=1)
    axes.set_xlim(low, high)
    ipc = max(ipc for _, ipc in found)
    axes.set_xlabel(f"test accuracy (%){f' at IPC {ipc}' if ipc else ''}")
    style.caption(figure, _rows_caption(found, arms, manifest))
    return figure


def _draw_row(axes: Axes, place: int, values: np.ndarray, look: tuple[str, str], high: float) -> None:
    color, marker = look
    mean, std = float(values.mean()), style.deviation(values)
    told = f"{mean:.1f}" + (f" ± {std:.1f}" if len(values) > 1 else "")
    axes.text(1.02, place, told, transform=axes.get_yaxis_transform(), va="center", color=style.dark(color))
    if mean > high:
        axes.plot([0.985], [place], transform=axes.get_yaxis_transform(), marker=">", ms=5, color=color, ls="")
        return
    if len(values) > 1:
        axes.plot(values, np.full(len(values), place + 0.24), ls="", marker=".", ms=3.6, mew=0, color=color, alpha=0.7)
        axes.errorbar([mean], [place], xerr=[std], ls="", color=color, elinewidth=1.0, zorder=3)
    axes.plot([mean], [place], **style.POINT, marker=marker, ms=5.5, mew=0.6, color=color, zorder=4)


def _row_limits(found: dict[tuple[str, int], np.ndarray]) -> tuple[float, float]:
    def bounds(arms: list[np.ndarray]) -> list[float]:
        ends = [float(values.mean()) + side * style.deviation(values) for values in arms for side in (-1, 1)]
        return ends + [float(value) for values in arms for value in values]

    real = bounds([values for (arm, _), values in found.items() if arm == "real"])
    data = bounds([values for (arm, _), values in found.items() if arm != "real"])
    if not data or (real and min(real) - max(data) <= _BREAK * max(max(data) - min(data), 2.0)):
        data += real
    low, high = min(data), max(data)
    pad = max(0.06 * (high - low), 0.5)
    return low - pad, high + pad


def _rows_caption(found: dict[tuple[str, int], np.ndarray], arms: list[str], manifest: Manifest) -> str:
    counts = {len(values) for values in found.values()}
    points = " (small points: single seeds)" if counts != {1} else ""
    teacher = teachers.accuracy(manifest)
    line = manifest.baseline
    told = [f"Dashed: {style.name(line)}." if isinstance(line, str) and line in arms else ""]
    told += [f"{teacher[0].capitalize()}: {100 * teacher[1]:.1f} %." if teacher else ""]
    second = " ".join(filter(None, told))
    return style.over_seeds(counts, points, "bars") + (f"\n{second}" if second else "")
