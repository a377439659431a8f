"""One live line while trials run; where nobody watches, one line a finished trial."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

_REDRAW_SECONDS = 0.1
_NAMED = 3
"""As many running trials are named; the rest are counted."""


@dataclass
class _Running:
    label: str
    round: int
    rounds: int
    seen: int = 0
    """Rounds that passed while we looked: a resumed trial does not start at 1."""


class Progress:
    """Counts trials and rounds, and guesses the time left. A stream that cannot be written to is left alone.

    `total_trials`: trials still to run when this was made. `stream`: standard error if None. `clock`: seconds.
    """

    def __init__(
        self, total_trials: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total_trials
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        self._drawn = -math.inf
        self._live = _is_terminal(self._stream)
        self._running: dict[str, _Running] = {}
        self._done = 0
        self._failed = 0
        self._rounds_seen = 0
        self._lengths: list[int] = []
        self._last = ""

    def round(self, key: str, label: str, round: int, rounds: int) -> None:
        """Trial `key`, shown as `label`, has ended `round` of `rounds`. After a restart it may fall back."""
        known = self._running.setdefault(key, _Running(label, round - 1, rounds))
        passed = max(0, round - known.round)
        self._rounds_seen += passed
        known.seen += passed
        known.round, known.rounds = round, rounds
        self._draw()

    def finished(self, key: str, label: str, accuracy: float | None, status: str = "finished") -> None:
        """Trial `key` has ended with a test accuracy (a fraction; None or NaN if unknown)."""
        trial = self._running.pop(key, None)
        if trial is not None:
            self._lengths.append(trial.rounds)
        self._done += 1
        self._failed += status == "failed"
        known = accuracy is not None and math.isfinite(accuracy)
        outcome = f"{100 * accuracy:.2f} %" if accuracy is not None and known else "no accuracy"
        self._last = f"{label} {outcome}" if status == "finished" else f"{label} {status}"
        if self._live:
            self._draw(now=True)
        else:
            width = len(str(self._total))
            self._write(f"[{self._done:>{width}}/{self._total}] {self._last}{self._tail()}\n")

    def close(self) -> None:
        """End the live line."""
        if self._live:
            self._draw(now=True)
            self._write("\n")
        self._live, self._stream = False, None

    def line(self) -> str:
        """The state in one line."""
        parts = [f"{self._done}/{self._total} trials"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        shown = [f"{t.label} {t.round}/{t.rounds}" for t in list(self._running.values())[:_NAMED]]
        more = len(self._running) - len(shown)
        if shown:
            parts.append("running " + ", ".join(shown) + (f" and {more} more" if more > 0 else ""))
        if self._last:
            parts.append(f"last {self._last}")
        return " | ".join([*parts, f"left {duration(self.seconds_left())}"])

    def seconds_left(self) -> float | None:
        """From the mean time a round so far; None until a trial has ended or every running one has shown two rounds."""
        if not self._rounds_seen or self._total <= self._done:
            return None if self._total > self._done else 0.0
        running = list(self._running.values())
        if not self._lengths and any(trial.seen < 2 for trial in running):
            return None
        lengths = self._lengths + [trial.rounds for trial in running]
        waiting = max(0, self._total - self._done - len(running))
        rounds = waiting * sum(lengths) / len(lengths) + sum(trial.rounds - trial.round for trial in running)
        return rounds * (self._clock() - self._start) / self._rounds_seen

    def _tail(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        left = self.seconds_left()
        return failed + (f", left {duration(left)}" if left else "")

    def _draw(self, now: bool = False) -> None:
        if not self._live or (not now and self._clock() - self._drawn < _REDRAW_SECONDS):
            return
        self._drawn = self._clock()
        width = shutil.get_terminal_size().columns - 1
        line = self.line()
        self._write("\r\x1b[K" + (line if len(line) <= width else line[: max(0, width - 3)] + "..."))

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError, AttributeError, LookupError):
            # A closed pipe or terminal must not end a sweep of hours.
            self._stream = None


def duration(seconds: float | None) -> str:
    """`--` for None, else the two largest units: `45 s`, `3 min 05 s`, `2 h 10 min`, `1 d 04 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "--"
    whole = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller:02d} {below}"
    return f"{whole} s"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False
