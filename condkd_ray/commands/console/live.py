"""What is seen of work while it runs: a bar for a long step; a live table of trials, or a line a finished one."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from condkd_ray.commands.console.live_table import drawn_bar
from condkd_ray.commands.console.live_table import lines as table
from condkd_ray.commands.console.progress import Progress
from condkd_ray.commands.console.screen import SCREEN, Screen
from condkd_ray.core.units import duration
from condkd_ray.core.view import AGREEMENT, NONE, Best, Goal, OnStep, TrialsView


@contextmanager
def bar(name: str, screen: Screen = SCREEN, clock: Callable[[], float] = time.monotonic) -> Iterator[OnStep]:
    """A bar while the block runs, on a terminal, and nothing elsewhere.

    What the block is given moves it: called with how much is done and how much there is to do, as often as you like.
    """
    begin, come = clock(), [0, 0]

    def move(done: int, total: int) -> None:
        come[:] = done, total

    def lines(columns: int, rows: int) -> list[str]:
        (done, total), spent = come, clock() - begin
        told = [name]
        if total:  # else nobody knows how much there is to do
            told.append(drawn_bar(done / total, fine=screen.fine, width=min(20, columns // 4)))
            told.append(f"{done / total:4.0%}")
        told.append(duration(spent))
        if 0 < done < total:
            told.append(f"left {duration(spent * (total - done) / done)}")
        return ["  ".join(told)[:columns]][:rows]

    with screen.showing(lines):
        yield move


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
        return table(self._progress, columns, rows, fine=self._screen.fine)

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
