"""What a program may do with anything it is given: take it, or refuse it in one message. No trace, and no hang."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from condkd_ray.core.method import InputError

SECONDS = 30.0
"""That one input may take, on a machine however busy: they are all small."""


@contextmanager
def hanging_never() -> Iterator[None]:
    """Raise `AssertionError` in a block that takes longer than `SECONDS`."""

    def ring(number: int, frame: Any) -> None:
        raise AssertionError(f"no end within {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(take: Callable[[], object]) -> str | None:
    """The message with which an input is refused; None where it is taken. Anything else fails the test."""
    with hanging_never():
        try:
            take()
        except InputError as error:
            told = str(error)
            assert "\n" not in told.strip(), f"more than a line: {told}"
            assert len(told) < 5000, f"{len(told)} characters: {told[:500]}"
            return told
    return None
