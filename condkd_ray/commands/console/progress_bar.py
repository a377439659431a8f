"""A bar for one long step: training a teacher, making a condensed set, probing, drawing figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from condkd_ray.commands.console.live_table import drawn_bar
from condkd_ray.commands.console.screen import SCREEN, Screen
from condkd_ray.core.units import duration


@dataclass
class _Bar:
    name: str
    screen: Screen
    clock: Callable[[], float]
    done: int = 0
    total: int = 0
    """0: nobody knows."""
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin = self.clock()

    def move(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def lines(self, columns: int, rows: int) -> list[str]:
        spent = self.clock() - self.begin
        told = [self.name]
        if self.total:
            told.append(drawn_bar(self.done / self.total, fine=self.screen.fine, width=min(20, columns // 4)))
            told.append(f"{self.done / self.total:4.0%}")
        told.append(duration(spent))
        if 0 < self.done < self.total:
            told.append(f"left {duration(spent * (self.total - self.done) / self.done)}")
        return ["  ".join(told)[:columns]][:rows]


@contextmanager
def bar(
    name: str, screen: Screen = SCREEN, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """A bar while the block runs, on a terminal, and nothing elsewhere.

    What the block is given moves it: called with how much is done and how much there is to do, as often as you like.
    """
    shown = _Bar(name, screen, clock)
    with screen.showing(shown.lines):
        yield shown.move
