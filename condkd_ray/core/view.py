"""`View`, the interface for progress displays. Plain messages go through `logging` instead.

A command passes a view of the terminal, a notebook may pass its own, and the API passes `SILENT`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from condkd_ray.core.task import CLASSIFICATION, Score

OnStep = Callable[[int, int], None]
"""Callback with the number of finished steps and the total, called whenever either changes."""
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Goal:
    """The per-round metric by which running trials are compared, and its direction."""

    metric: str = "proxy/agreement"
    larger: bool = True
    decides: bool = False
    """True if a search optimises this metric; a display then shows no other, and hides the test score."""
    score: Score = CLASSIFICATION
    """The score that is measured on the test images."""

    def better(self, value: float, other: float | None) -> bool:
        """Return whether `value` is better than `other`; every value is better than None."""
        return other is None or (value > other if self.larger else value < other)


@dataclass(frozen=True)
class Best:
    """The best finished trial: its label, its value of the goal's metric, and its values of the open leaves."""

    label: str
    value: float
    leaves: Mapping[str, Any] = field(default_factory=dict)


AGREEMENT = Goal()


class TrialsView(Protocol):
    """Shows the progress of many trials."""

    def round(self, key: str, label: str, metrics: Mapping[str, float], rounds: int) -> None:
        """Show that trial `key` has finished one of its `rounds`; the number is `metrics["round"]`."""

    def finished(
        self,
        key: str,
        label: str,
        status: str,
        score: float | None,
        *,
        group: str = "",
        leaves: Mapping[str, Any] = NONE,
    ) -> None:
        """Show the end of trial `key` of arm `group`, with its test score (a fraction; None or NaN if unknown)."""

    def close(self) -> None:
        """End the display: all trials have ended, or the run is stopped."""


class View(Protocol):
    """Shows the progress of a program, in addition to its log."""

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """Show a progress bar for one long task; the context yields the callback for its progress."""
        ...

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Show the progress of `total` trials; `best` is the best trial so far."""
        ...


class Silent(View, TrialsView):
    """A `View` and `TrialsView` that shows nothing."""

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """Return a context whose callback does nothing."""
        return nullcontext(no_bar)

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Return itself."""
        return self


def no_bar(done: int, total: int) -> None:
    """Do nothing; an `OnStep` for callers without a display."""


SILENT: View = Silent()
