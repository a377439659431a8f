"""What Tune tells the driver. Tune pickles its callbacks: these hold a word for who listens, not the listener."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune import Callback, Stopper


class Listener(Protocol):
    """Hears of a sweep's trials by their keys, in the driver's main thread.

    `error`: what its methods raised, put there by us, as Tune would take it for a failure of the trial. The sweep is
    then stopped, and nothing more is heard.
    """

    error: Exception | None

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
def listening(listener: Listener) -> Iterator[tuple[Events, StopOnError]]:
    """The callback and the stopper of a Tuner, that make `listener` hear of its trials."""
    word = secrets.token_hex(8)
    _listeners[word] = listener
    try:
        yield Events(word), StopOnError(word)
    finally:
        del _listeners[word]


class Events(Callback):
    """Passes on to the listener of `word`."""

    def __init__(self, word: str) -> None:
        self._word = word

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any):
        """A round."""
        self._tell("heard", trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """An outcome."""
        self._tell("completed", trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """No retry is left."""
        self._tell("failed", trial, _reason(trial))

    def _tell(self, what: str, trial: Any, *rest: Any) -> None:
        listener = _listeners[self._word]
        if listener.error is None:
            try:
                getattr(listener, what)(trial.config["key"], *rest)
            except Exception as error:
                listener.error = error


class StopOnError(Stopper):
    """Stops the whole sweep once the listener of `word` has raised an error."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial."""
        return False

    def stop_all(self) -> bool:
        """All of them."""
        return _listeners[self._word].error is not None


def _reason(trial: Any) -> str:
    """One line on why a Tune trial failed."""
    # Our own process has just written it there; the trial's own way to it looks where it is copied to later.
    file = trial.pickled_error_file
    error = cloudpickle.loads(Path(file).read_bytes()) if file else None
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, Exception) else error
        return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
    return f"its process died ({type(error).__name__})"
