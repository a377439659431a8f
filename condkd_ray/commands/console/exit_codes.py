"""What every program here does the same: words to the user and exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from condkd_ray.commands.console.screen import SCREEN
from condkd_ray.core.method import ClusterError, InputError, NonFiniteError
from condkd_ray.core.storage import no_room

if TYPE_CHECKING:
    from condkd_ray.runs.options import RunResult

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted; the same command continues"


class _Words(logging.Handler):
    """Writes messages on standard error, above what is drawn there. If that is closed, nobody hears them."""

    def emit(self, record: logging.LogRecord) -> None:
        SCREEN.say(self.format(record))


_WORDS = _Words()


def speak(details: bool = False) -> None:
    """From now on write what this package logs on standard error; with `details`, messages of level DEBUG too."""
    logger = logging.getLogger("condkd_ray")
    logger.setLevel(logging.DEBUG if details else logging.INFO)
    if _WORDS not in logger.handlers:
        logger.addHandler(_WORDS)
        # A handler of the root would write them a second time.
        logger.propagate = False


def say(text: str) -> None:
    """Log one line for the user."""
    log.info(text)


def show(text: str) -> None:
    """What was asked for, on standard output. If that is closed, to nobody."""
    try:
        print(text, flush=True)
    except OSError:
        # Python would try once more at its end, and then say that it failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def exit_codes() -> Iterator[None]:
    """Bad input: one message and exit code 2. Ctrl-C: 130.

    1, and one message: a NaN in a teacher or set, a full GPU or storage, a cluster that does not come up.
    """
    speak()
    interrupts: list[int] = []
    try:
        with _noted(interrupts):
            yield
        return
    except InputError as error:
        told, code = f"error: {error}", 2
    except NonFiniteError as error:
        told, code = f"failed: {error}", 1
    except ClusterError as error:
        told, code = f"failed: {error}; the same command tries again", 1
    except KeyboardInterrupt:
        told, code = INTERRUPTED, 130
    except Exception as error:
        if interrupts:
            # What is interrupted in the middle of an import may raise anything.
            log.debug("raised after an interrupt", exc_info=error)
            told, code = INTERRUPTED, 130
        elif (lacking := _lacking(error)) is not None:
            told, code = f"failed: {lacking}", 1
        else:
            raise
    say(told)
    sys.exit(code)


@contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """A block in which each Ctrl-C is added to the list, beside what it does."""

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    # Who starts us may have it ignored, or handled otherwise; and only the main thread has handlers.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _lacking(error: Exception) -> str | None:
    """The memory or storage that was lacking, in words, if the error is about either."""
    # This imports PyTorch, and the next one Optuna: where the error can be about them they have been imported already.
    from condkd_ray.core.environment import is_out_of_memory, out_of_memory

    if is_out_of_memory(error):
        return out_of_memory(error)
    if (full := no_room(error)) is not None:
        return f"{full}; the same command continues once there is room"
    from condkd_ray.study.storage import refusal

    told = refusal(error)
    return None if told is None else f"{told}; the same command continues once it can"


def ended(result: "RunResult") -> int:
    """The exit code of a run, and words where it is not complete."""
    if result.complete:
        return 1 if result.failed else 0
    say(f"{f'the {result.spent[0]} budget is spent' if result.spent else 'interrupted'}; the same command continues")
    return 3 if result.spent else 130
