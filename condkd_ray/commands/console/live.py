"""What is seen of trials while they run: a live table on a terminal; elsewhere a line a finished trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from condkd_ray.commands.console.live_table import lines, written
from condkd_ray.commands.console.progress import NONE, Progress, duration
from condkd_ray.commands.console.screen import SCREEN, Screen
from condkd_ray.core.method import Metrics

LOSSES = ("inversion/", "guidance/", "kd/")
"""Families of loss terms."""


class Live:
    """Shows `progress`, which is changed through this alone."""

    def __init__(self, progress: Progress, screen: Screen = SCREEN) -> None:
        self._progress, self._screen = progress, screen
        screen.show(self._part)

    def round(self, key: str, label: str, metrics: Metrics, rounds: int) -> None:
        """Trial `key`, shown as `label`, has ended a round of so many."""
        with self._screen.lock:
            value = metrics.get(self._progress.goal.metric)
            self._progress.round(key, label, int(metrics["round"]), rounds, value)

    def finished(
        self,
        key: str,
        label: str,
        status: str,
        accuracy: float | None,
        *,
        group: str = "",
        leaves: Mapping[str, Any] = NONE,
    ) -> None:
        """Trial `key` of arm `group` has ended with a test accuracy (a fraction; None or NaN if unknown)."""
        with self._screen.lock:
            progress = self._progress
            value = progress.finished(key, label, status, group=group, leaves=leaves)
            if self._screen.live:
                return
            width, came = len(str(progress.total)), self._came(status, value, accuracy)
            self._screen.say(f"[{progress.done:>{width}}/{progress.total}] {label} {came}{self._tail()}")

    def close(self) -> None:
        """No more will be heard."""
        live = self._screen.live
        self._screen.hide(self._part)
        progress = self._progress
        if live and progress.total:
            failed = f", {progress.ended['failed']} failed" if progress.ended["failed"] else ""
            self._screen.say(f"{progress.done} of {progress.total} trials{failed} in {duration(progress.seconds)}")

    def _part(self, columns: int, rows: int) -> list[str]:
        return lines(self._progress, columns, rows, fine=self._screen.fine)

    def _came(self, status: str, value: float | None, accuracy: float | None) -> str:
        goal = self._progress.goal
        if goal.decides:
            told = "" if value is None else f", {goal.metric} {value:.4f}"
            return f"{status}{told}"
        if status != "finished":
            return status
        known = accuracy is not None and math.isfinite(accuracy)
        return f"{100 * accuracy:.2f} %" if accuracy is not None and known else "no accuracy"

    def _tail(self) -> str:
        progress, failed = self._progress, self._progress.ended["failed"]
        left = progress.seconds_left()
        best = progress.best if progress.goal.decides else None
        told = f"; best so far {best.label}, {best.value:.4f}" if best else ""
        return (f", {failed} failed" if failed else "") + (f", left {duration(left)}" if left else "") + told


def round_line(label: str, metrics: Metrics, rounds: int, metric: str) -> str:
    """One round of a trial, whole: the metric that is looked at, all loss terms, its seconds."""
    terms = {name: value for name, value in metrics.items() if name.startswith(LOSSES) and name != metric}
    shown = {name: metrics[name] for name in (metric,) if name in metrics} | terms
    told = ", ".join(f"{name} {written(value)}" for name, value in shown.items())
    return f"{label} round {int(metrics['round'])}/{rounds}: {told}, {metrics['time/wall_seconds']:.1f} s"
