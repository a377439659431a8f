"""Progress of the commands: a bar for a long step, and a table of trials or, without a terminal, a line per trial."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from sys import maxsize
from time import monotonic
from typing import Any

from condkd_ray.commands.console.screen import SCREEN
from condkd_ray.core.task import Task
from condkd_ray.core.units import duration
from condkd_ray.core.view import AGREEMENT, NONE, Best, Goal, OnStep, TrialsView

Leaves = Mapping[str, Any]
"""Values of a search's open leaves by name."""
GAP = "  "
NARROWEST = {4: 18, 3: 8}
"""Smallest width of the label column, by the number of columns; if it does not fit, the last column is dropped."""
_TESTED: Mapping[Task, str] = {"classification": "test", "segmentation": "test mean IoU"}
"""Words before the test score of a finished trial."""
BAR = 24
"""Width of a bar in characters."""


@dataclass
class Running:
    """A running trial that has finished at least one round.

    `round`: number of its last round. `rounds`: number of all its rounds.
    """

    label: str
    round: int
    rounds: int
    seen: int = 0
    """Number of rounds that this process has counted; a resumed trial has finished others before."""
    now: float | None = None
    """Last finite value of the goal's metric."""
    best: float | None = None
    """Best value of the goal's metric."""


class Live:
    """Prints the progress of trials and the time left: a table on a terminal, otherwise one line per ended trial.

    `total`: number of trials to run, counted at the start. `best`: the best trial of earlier runs.
    """

    def __init__(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> None:
        self.total, self.goal, self.best = total, goal, best
        self.running: dict[str, Running] = {}
        self.ended = Counter[str]()
        """Number of ended trials by status."""
        self.groups: dict[str, list[float]] = defaultdict(list)
        """Last values of the goal's metric of finished trials, by arm."""
        self._start = monotonic()
        self._rounds_seen = 0
        self._counted_from: float | None = None
        """Time from which the rounds are counted for the estimate; None before.

        The first rounds do not count, because they include the start-up of their trials.
        """
        self._lengths: list[int] = []
        """Planned rounds of each ended trial."""
        self._shown = ExitStack()
        self._shown.enter_context(SCREEN.showing(lambda *room: table(self, *room, fine=SCREEN.fine)))

    @property
    def done(self) -> int:
        """Number of trials that have ended, with any status."""
        return self.ended.total()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._start

    def round(self, key: str, label: str, metrics: Mapping[str, float], rounds: int) -> None:
        """Record a finished round of trial `key`, printed as `label`; after a restart the number may be lower."""
        number, value = int(metrics["round"]), metrics.get(self.goal.metric, math.nan)
        with SCREEN.lock:
            known = self.running.setdefault(key, Running(label, number - 1, rounds))
            passed = max(0, number - known.round)
            known.seen += passed
            if not self._rounds_seen and not self.done and known.seen < 2:
                self._counted_from = monotonic()
            else:
                self._rounds_seen += passed
            known.round, known.rounds = number, rounds
            if math.isfinite(value):
                known.now = value
                known.best = value if self.goal.better(value, known.best) else known.best

    def finished(
        self, key: str, label: str, status: str, score: float | None, *, group: str = "", leaves: Leaves = NONE
    ) -> None:
        """Record the end of trial `key` of arm `group` with a test score (a fraction; None or NaN if unknown)."""
        with SCREEN.lock:
            self.ended[status] += 1
            trial = self.running.pop(key, None)
            value = trial.now if trial else None
            if trial:
                self._lengths.append(trial.rounds)
            if status == "finished" and value is not None:
                self.groups[group].append(value)
                if self.goal.better(value, self.best and self.best.value):
                    self.best = Best(label, value, leaves)
            if not SCREEN.live:
                result = self._result(status, value, score)
                SCREEN.message(f"[{self.done:>{len(str(self.total))}}/{self.total}] {label} {result}{self._tail()}")

    def close(self) -> None:
        """Erase the table; on a terminal, write a line with the totals."""
        live = SCREEN.live
        self._shown.close()
        if live and self.total:
            spent = duration(self.seconds)
            SCREEN.message(f"{self.done} of {self.total} trials{self._failures()} in {spent}")

    def seconds_left(self) -> float | None:
        """Return the time left in seconds, estimated from the mean time per round.

        None until a trial has ended or each running trial has finished two rounds.
        """
        if self.total <= self.done:
            return 0.0
        if not self._rounds_seen or self._counted_from is None:
            return None
        running = list(self.running.values())
        if not self._lengths and any(trial.seen < 2 for trial in running):
            return None
        lengths = self._lengths + [trial.rounds for trial in running]
        waiting = max(0, self.total - self.done - len(running))
        rounds = waiting * sum(lengths) / len(lengths) + sum(trial.rounds - trial.round for trial in running)
        return rounds * (monotonic() - self._counted_from) / self._rounds_seen

    def _result(self, status: str, value: float | None, score: float | None) -> str:
        if self.goal.decides:
            return status if value is None else f"{status}, {self.goal.metric} {value:.4f}"
        if status != "finished":
            return status
        if score is None or not math.isfinite(score):
            return f"no {self.goal.score.name}"
        return f"{_TESTED[self.goal.score.task]} {100 * score:.2f} %"

    def _tail(self) -> str:
        left, best = self.seconds_left(), self.best if self.goal.decides else None
        leader = f"; best so far {best.label}, {best.value:.4f}" if best else ""
        return self._failures() + (f", left {duration(left)}" if left else "") + leader

    def _failures(self) -> str:
        return f", {self.ended['failed']} failed" if self.ended["failed"] else ""


class Terminal:
    """The `View` of the commands: bars and tables below the log messages."""

    @contextmanager
    def bar(self, name: str) -> Iterator[OnStep]:
        """Draw a bar while the block runs; without a terminal, draw nothing.

        Yields a function that sets the bar. Its arguments are the number of steps done and the number of all steps.
        """
        begin, progress = monotonic(), [0, 0]

        def move(done: int, total: int) -> None:
            progress[:] = done, total

        def lines(columns: int, rows: int) -> list[str]:
            (done, total), spent = progress, monotonic() - begin
            cells = [name]
            if total:
                cells.append(drawn_bar(done / total, fine=SCREEN.fine, width=min(20, columns // 4)))
                cells.append(f"{done / total:4.0%}")
            cells.append(duration(spent))
            if 0 < done < total:
                cells.append(f"left {duration(spent * (total - done) / done)}")
            return [GAP.join(cells)[:columns]][:rows]

        with SCREEN.showing(lines):
            yield move

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Return the progress of `total` trials: a table or, without a terminal, one line per ended trial."""
        return Live(total, goal, best)


TERMINAL = Terminal()


def table(live: Live, columns: int, rows: int, *, fine: bool) -> list[str]:
    """Return at most `rows` lines: the totals, the best trial, the running trials, the arms. Arms are left out first.

    `fine`: whether line-drawing characters may be used instead of ASCII.
    """
    head, metric, best = _head(live, columns, fine=fine), live.goal.metric, live.best
    if best is not None and live.goal.decides:
        leaves = best.leaves.items()
        values = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in leaves]
        head.append(f"best: {best.label}, {metric} {best.value:.4f}"[:columns])
        head += _folded(values, columns, indent=GAP)
    if rows < len(head) + 4:
        return head[: max(0, rows)]
    running = list(live.running.values())
    means = [[arm, str(len(values)), f"{fmean(values):.4f}"] for arm, values in live.groups.items()]
    arms = aligned([["finished", "n", f"mean {metric}"], *means], columns) if means and not live.goal.decides else []
    room = rows - len(head) - 1
    if len(arms) + 1 + min(len(running) + 1, max(4, room // 2)) > room:
        arms = []
    below = ["", *arms] if arms else []
    return [*head, "", *_running(running, metric, columns, room - len(below)), *below]


def drawn_bar(share: float, *, fine: bool, width: int = BAR) -> str:
    """Return a bar of `width` characters, filled by `share`, 0 to 1."""
    full, empty = ("━", "─") if fine else ("#", "-")
    length = round(width * min(1.0, max(0.0, share)))
    return full * length + empty * (width - length)


def _head(live: Live, columns: int, *, fine: bool) -> list[str]:
    done = live.done + sum(one.round / one.rounds for one in live.running.values())
    bar = drawn_bar(done / max(1, live.total), fine=fine, width=min(BAR, columns // 4))
    cells = [f"{live.done}/{live.total} trials"]
    cells += [f"{count} {status}" for status, count in sorted(live.ended.items()) if status != "finished"]
    cells += [duration(live.seconds), f"left {duration(live.seconds_left())}"]
    return _folded([bar, *cells], columns)


def _running(running: Sequence[Running], metric: str, columns: int, rows: int) -> list[str]:
    if not running:
        return ["waiting for the next round"[:columns]]
    fitting = running if len(running) < rows else running[: max(0, rows - 2)]
    body = [[one.label, f"{one.round}/{one.rounds}", _number(one.now), _number(one.best)] for one in fitting]
    lines = aligned([["running", "round", metric, "best"], *body], columns)
    more = len(running) - len(fitting)
    return [*lines, f"and {more} more"[:columns]] if more else lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def aligned(body: Sequence[Sequence[str]], columns: int = maxsize) -> list[str]:
    """Return rows of cells as lines of aligned columns; the first column is cut to fit, to `NARROWEST` at least."""
    first, *rest = [max(map(len, column)) for column in zip(*body, strict=True)]
    while len(rest) > 1 and min(first, NARROWEST.get(1 + len(rest), 0)) + sum(rest) + len(GAP) * len(rest) > columns:
        rest.pop()
    first = max(1, min(first, columns - sum(rest) - len(GAP) * len(rest)))
    rows = ([_cut(row[0], first), *map(str.rjust, row[1:], rest)] for row in body)
    return [GAP.join(row)[:columns].rstrip() for row in rows]


def _cut(text: str, width: int) -> str:
    """Return the text cut or padded to `width`; cut in the middle, because labels differ at both ends."""
    if len(text) <= width:
        return text.ljust(width)
    kept = max(0, width - 2)
    return f"{text[: kept - kept // 2]}..{text[len(text) - kept // 2 :]}"[:width]


def _folded(parts: Sequence[str], columns: int, indent: str = "") -> list[str]:
    """Return lines of as many parts as fit; a part that is too long for a line is cut."""
    folded: list[str] = []
    for part in parts:
        together = f"{folded[-1]}{GAP}{part}" if folded else ""
        if folded and len(together) <= columns:
            folded[-1] = together
        else:
            folded.append(f"{indent}{part}"[:columns])
    return folded
