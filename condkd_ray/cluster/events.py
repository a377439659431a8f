"""What Tune tells the driver. Tune pickles its callbacks: this one holds a word for who listens, not the listener."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ray.exceptions import RayTaskError
from ray.tune import Callback


class Listener(Protocol):
    """Hears of a sweep's trials by their keys, in the driver's main thread."""

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A round was reported."""
        ...

    def completed(self, key: str) -> None:
        """The trial has left its outcome."""
        ...

    def failed(self, key: str, reason: str) -> None:
        """The trial was given up, after its retries."""
        ...


_listeners: dict[str, Listener] = {}


@contextmanager
def listening(listener: Listener) -> Iterator[Events]:
    """The callback for a Tuner that makes `listener` hear of its trials."""
    word = secrets.token_hex(8)
    _listeners[word] = listener
    try:
        yield Events(word)
    finally:
        del _listeners[word]


class Events(Callback):
    """Passes on to the listener of `word`."""

    def __init__(self, word: str) -> None:
        self._word = word

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any):
        """A round."""
        _listeners[self._word].heard(trial.config["key"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """An outcome."""
        _listeners[self._word].completed(trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """No retry is left."""
        _listeners[self._word].failed(trial.config["key"], _reason(trial.get_pickled_error()))


def _reason(error: Exception | None) -> str:
    """One line on why a trial failed."""
    if isinstance(error, RayTaskError):
        error = error.cause if isinstance(error.cause, Exception) else error
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return "its process died" if error is None else f"its process died ({type(error).__name__})"
