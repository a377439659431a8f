"""What is shown of work while it goes on. Words go through `logging`; what moves or is asked for goes through a `View`.

A command hands down a view of the terminal, a notebook may hand down one of its own, and the API hands down `SILENT`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

OnStep = Callable[[int, int], None]
"""Called with how much is done and how much there is to do, as often as either changes."""
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Goal:
    """The metric of a round by which a trial is judged while it runs, and whether more of it is better."""

    metric: str = "proxy/agreement"
    larger: bool = True
    decides: bool = False
    """Whether a search decides by it: then it alone is shown of a trial, and test accuracy is not."""

    def better(self, value: float, other: float | None) -> bool:
        """Whether `value` is better than `other`; anything is better than None."""
        return other is None or (value > other if self.larger else value < other)


@dataclass(frozen=True)
class Best:
    """The best finished trial: its label, its value of the goal's metric, and the values of its open leaves."""

    label: str
    value: float
    leaves: Mapping[str, Any] = field(default_factory=dict)


AGREEMENT = Goal()


class TrialsView(Protocol):
    """The progress of many trials."""

    def round(self, key: str, label: str, metrics: Mapping[str, float], rounds: int) -> None:
        """Trial `key` has ended one of its `rounds`; its number is `metrics["round"]`."""

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
        """Trial `key` of arm `group` has ended, with a test accuracy (a fraction; None or NaN if unknown)."""

    def close(self) -> None:
        """All trials have ended, or the run is stopped."""


class View(Protocol):
    """What a program shows its user beside its log."""

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """A progress bar around one long step; what it gives is called as the step proceeds."""
        ...

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """The progress of `total` trials, the best earlier one among them."""
        ...


class Silent(View, TrialsView):
    """Shows nothing of work and of trials."""

    def bar(self, name: str) -> AbstractContextManager[OnStep]:
        """Nothing."""
        return nullcontext(unheard)

    def trials(self, total: int, goal: Goal = AGREEMENT, best: Best | None = None) -> TrialsView:
        """Itself."""
        return self


def unheard(done: int, total: int) -> None:
    """An `OnStep` that shows nothing."""


SILENT: View = Silent()
