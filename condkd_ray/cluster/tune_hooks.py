"""What Tune tells the driver, and what it asks in a search: which trial next, and whether one goes on.

Tune pickles all that it is given: the classes here hold a word for who listens, not the listener.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

UNLIMITED = -1
IN_VAIN = 10
"""Attempts in a row, without one more round than ever before, after which a trial is given up (our choice).

However they end. Otherwise a process that always dies at the same place, before our code even begins, would be started
again for ever, as killed processes do not count.
"""


class Listener(Protocol):
    """Hears of trials by their keys, in the driver's main thread: a `Monitor`, or a `SearchMonitor` in a search."""

    error: Exception | None

    @property
    def over(self) -> bool:
        """Whether no more trials shall start, and none runs."""
        ...


_listeners: dict[str, Listener] = {}


@contextmanager
def listening(listener: Listener) -> Iterator[tuple[Callback, Stopper, Searcher, TrialScheduler]]:
    """What makes `listener` hear of a Tuner's trials and stops these; and, in a search, what asks it about them."""
    word = secrets.token_hex(8)
    _listeners[word] = listener
    try:
        yield _Events(word), _StopOnError(word), _Proposing(word), _Pruning(word)
    finally:
        del _listeners[word]


class _Hook:
    """Of Tune, with the `word` of a listener."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def ask(self, what: str, *rest: Any) -> Any:
        """What the listener answers; None where it raises an error, or has raised one before."""
        listener = _listeners[self.word]
        if listener.error is None:
            try:
                return getattr(listener, what)(*rest)
            except Exception as error:
                listener.error = error
        return None


class _Events(_Hook, Callback):
    """Passes on to the listener, and sees to it that no trial is tried for ever."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self._rounds: Counter[str] = Counter()
        self._in_vain: Counter[str] = Counter()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Also once more after each failure."""
        self.ask("started", trial.config["key"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any):
        """A round; not a new one where a trial tells what it had told before its process died."""
        key, number = trial.config["key"], result.get("round", 0)
        if number > self._rounds[key]:
            self._rounds[key], self._in_vain[key] = number, 0
            trial.max_failures = UNLIMITED
        self.ask("heard", key, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Its process died, or it raised an exception; Tune will try again."""
        key = trial.config["key"]
        self._in_vain[key] += 1
        if self._in_vain[key] >= IN_VAIN - 1:
            trial.max_failures = 0
        self.ask("retried", key, _reason(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        self.ask("completed", trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """No retry is left."""
        reason = f"{IN_VAIN} attempts in a row without one more round; the last: {_reason(trial)}"
        self.ask("failed", trial.config["key"], reason)


class _StopOnError(_Hook, Stopper):
    """Stops the whole sweep once the listener has raised an error, or says that it is over; no single trial."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        listener = _listeners[self.word]
        return listener.error is not None or listener.over


class _Proposing(_Hook, Searcher):
    """Asks the listener, that of a search, for trials until it has none left.

    Not Ray's `OptunaSearch`: with a study in a storage it cannot go on after its driver has died, counts trials that
    were stopped early as complete, and leaves those that end with a NaN running for ever: see
    `tests/cluster/test_optuna_search.py`. What is known is in the study: nothing is saved or restored here.
    """

    def suggest(self, trial_id: str) -> Any:
        """The setup of the next trial; None where it depends on those that run."""
        setup = self.ask("propose")
        if setup == "later":
            return None
        return Searcher.FINISHED if setup is None else setup

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The listener hears it from `_Events`."""

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _Pruning(_Hook, FIFOScheduler):
    """Trials run in their order; the listener says after each round whether one goes on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Asked before the callbacks hear of the round, so that it is told first."""
        # Here, and here alone, it comes with the trial's setup spread out in it.
        self.ask("heard", trial.config["key"], {k: v for k, v in result.items() if not k.startswith("config/")})
        on = self.ask("goes_on", trial.config["key"])
        return TrialScheduler.STOP if on is False else TrialScheduler.CONTINUE


def _reason(trial: Any) -> str:
    """One line on why a Tune trial failed."""
    # The text of the error, never the pickle beside it. Our own process has just written it there.
    file = trial.error_file
    return reason_in(Path(file).read_text() if file else "")


def reason_in(text: str) -> str:
    """The last failure of Tune's error file in one line: the exception a trace ends with, or how the process died."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # Ray colours it
    lines = plain.rpartition("Failure # ")[2].splitlines()[1:]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ?", line)]
    if any("Traceback" in line or line.startswith("ray::") for line in lines) and raised:
        return raised[-1].strip()
    return f"its process died ({next((line.strip() for line in lines if line.strip()), 'no reason known')})"
