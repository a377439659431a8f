"""Test accuracy where at most one number of condensed images was tried: a row an arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condkd_ray.core.records import Manifest, Record
from condkd_ray.report.figures.style import Looks, caption, dark, deviation, name, over_seeds, percents, rows
from condkd_ray.report.statistics import groups
from condkd_ray.report.tables import teachers

FAR = 0.8
"""`real` is told in words where it stands this many widths of the other data, or more, to the right of them."""


def dots_figure(records: Sequence[Record], manifest: Manifest, looks: Looks) -> Figure | None:
    """Means, deviations and single seeds of each arm, and the baseline as a line; None without a tested trial."""
    found = {key: values for key, members in groups(records).items() if len(values := percents(members))}
    if not found:
        return None
    arms = [arm for arm, _ in found]
    several = len(set(arms)) < len(arms)
    labels = [name(arm) + (f", IPC {ipc}" if several and ipc else "") for arm, ipc in found]
    figure, axes = rows(labels)
    low, high = _limits(found)
    for place, ((arm, _), values) in enumerate(found.items()):
        _draw(axes, place, values, looks[arm], high)
    for (arm, _), values in found.items():
        if arm == manifest.baseline and values.mean() <= high:
            axes.axvline(float(values.mean()), color=looks[arm][0], lw=0.9, ls="--", zorder=1)
    axes.set_xlim(low, high)
    ipc = max(ipc for _, ipc in found)
    axes.set_xlabel(f"test accuracy (%){f' at IPC {ipc}' if ipc else ''}")
    caption(figure, _caption(found, arms, manifest))
    return figure


def _draw(axes: Axes, place: int, values: np.ndarray, look: tuple[str, str], high: float) -> None:
    color, marker = look
    mean, std = float(values.mean()), deviation(values)
    told = f"{mean:.1f}" + (f" ± {std:.1f}" if len(values) > 1 else "")
    axes.text(1.02, place, told, transform=axes.get_yaxis_transform(), va="center", color=dark(color))
    if mean > high:
        axes.plot([0.985], [place], transform=axes.get_yaxis_transform(), marker=">", ms=5, color=color, ls="")
        return
    if len(values) > 1:
        axes.plot(values, np.full(len(values), place + 0.24), ls="", marker=".", ms=3.6, mew=0, color=color, alpha=0.7)
        axes.errorbar([mean], [place], xerr=[std], ls="", color=color, elinewidth=1.0, zorder=3)
    axes.plot([mean], [place], ls="", marker=marker, ms=5.5, mec="white", mew=0.6, color=color, zorder=4)


def _limits(found: dict[tuple[str, int], np.ndarray]) -> tuple[float, float]:
    def bounds(arms: list[np.ndarray]) -> list[float]:
        ends = [float(values.mean()) + side * deviation(values) for values in arms for side in (-1, 1)]
        return ends + [float(value) for values in arms for value in values]

    real = bounds([values for (arm, _), values in found.items() if arm == "real"])
    data = bounds([values for (arm, _), values in found.items() if arm != "real"])
    if not data or (real and min(real) - max(data) <= FAR * max(max(data) - min(data), 2.0)):
        data += real
    low, high = min(data), max(data)
    pad = max(0.06 * (high - low), 0.5)
    return low - pad, high + pad


def _caption(found: dict[tuple[str, int], np.ndarray], arms: list[str], manifest: Manifest) -> str:
    counts = {len(values) for values in found.values()}
    points = " (small points: single seeds)" if counts != {1} else ""
    teacher = teachers.accuracy(manifest)
    line = manifest.baseline
    told = [f"Dashed: {name(line)}." if isinstance(line, str) and line in arms else ""]
    told += [f"{teacher[0].capitalize()}: {100 * teacher[1]:.1f} %." if teacher else ""]
    second = " ".join(filter(None, told))
    return over_seeds(counts, points, "bars") + (f"\n{second}" if second else "")
