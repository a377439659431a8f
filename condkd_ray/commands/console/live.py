"""What is seen of trials while they run: a live table on a terminal; elsewhere a line a finished trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from condkd_ray.commands.console.live_table import lines
from condkd_ray.commands.console.progress import Progress
from condkd_ray.commands.console.progress_bar import bar
from condkd_ray.commands.console.screen import SCREEN, Screen
from condkd_ray.core.units import duration
from condkd_ray.core.view import AGREEMENT, NONE, Best, Goal, OnStep, TrialsView


class Terminal:
    """The `View` of the commands: bars and tables below what is logged."""

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """A bar while the block runs, on a terminal, and nothing elsewhere."""
        return bar(name)

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """A live table on a terminal; elsewhere a line a finished trial."""
        return Live(Progress(total, goal, best=best))


TERMINAL = Terminal()


class Live:
    """Shows `progress`, which is changed through this alone."""

    def __init__(self, progress: Progress, screen: Screen = SCREEN) -> None:
        self._progress, self._screen = progress, screen
        screen.show(self._part)

    def round(self, key: str, label: str, metrics: Mapping[str, float], rounds: int) -> None:
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
