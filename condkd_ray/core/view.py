"""How far a long piece of work has come: told by who does it, shown by whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

OnStep = Callable[[int, int], None]
"""Hears how much is done, and how much there is to do, as often as there is more."""
Bar = Callable[[str], AbstractContextManager[OnStep]]
"""Around a piece of work, by its name; what it gives is to be told how far that has come."""


def unheard(done: int, total: int) -> None:
    """Nobody waits."""
    return


def no_bar(name: str) -> AbstractContextManager[OnStep]:
    """Nobody waits."""
    return nullcontext(unheard)
