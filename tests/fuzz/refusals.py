"""Checks that a program accepts any input or refuses it with one message, without a traceback and without hanging."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from condkd_ray.core.method import InputError

SECONDS = 30.0
"""Time limit for one input, also on a busy machine; all inputs are small."""


@contextmanager
def time_limit() -> Iterator[None]:
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
    """Return the message with which an input is refused, or None if it is accepted; anything else fails the test."""
    with time_limit():
        try:
            take()
        except InputError as error:
            message = str(error)
            assert "\n" not in message.strip(), f"more than a line: {message}"
            assert len(message) < 5000, f"{len(message)} characters: {message[:500]}"
            return message
    return None
