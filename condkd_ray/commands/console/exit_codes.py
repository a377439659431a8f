"""Messages and exit codes that all commands share."""

import errno
import logging
import os
import signal
import stat
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

CLOSED = {errno.EPIPE, errno.EBADF}
"""Error numbers of a stream that nobody reads any more."""
INTERRUPTED = "interrupted; the same command continues"


class _ScreenHandler(logging.Handler):
    """Writes log messages to standard error, above the progress lines; drops them if standard error is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        SCREEN.message(self.format(record))


_HANDLER = _ScreenHandler()


def log_to_stderr(details: bool = False) -> None:
    """Write this package's log messages to standard error from now on; `details` includes level DEBUG."""
    logger = logging.getLogger("condkd_ray")
    logger.setLevel(logging.DEBUG if details else logging.INFO)
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
        # A handler of the root logger would write them a second time.
        logger.propagate = False


def log_line(text: str) -> None:
    """Log one line for the user."""
    log.info(text)


def show(text: str, end: str = "\n") -> None:
    """Print a command's result on standard output; it is dropped if standard output is closed.

    Raises `OSError`, naming standard output, if it cannot be written for another reason, such as full storage.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        gone = error.errno in CLOSED or (error.errno == errno.EIO and _is_device())
        # Otherwise Python would flush once more at exit, and print that error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not gone:
            raise OSError(error.errno, error.strerror, "standard output") from error


def _is_device() -> bool:
    """Return whether standard output is a device, such as a terminal: writing to one that was closed gives EIO."""
    return stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors of a command into one message and an exit code.

    1: a NaN in a teacher or set, a full GPU, full storage, a study's data base that cannot be used, or a cluster (or a
    process or node of it) that did not start or was lost. 2: bad input. 130: Ctrl-C. All other exceptions pass through
    with their trace.
    """
    log_to_stderr()
    interrupts: list[int] = []
    try:
        with _recorded(interrupts):
            try:
                yield
            finally:
                show("", end="")  # writes out what libraries have printed, such as a help text
        return
    except InputError as error:
        message, code = f"error: {error}", 2
    except NonFiniteError as error:
        message, code = f"failed: {error}", 1
    except ClusterError as error:
        message, code = f"failed: {error}; the same command tries again", 1
    except KeyboardInterrupt:
        message, code = INTERRUPTED, 130
    except Exception as error:
        if interrupts:
            # An interrupted import may raise any exception.
            log.debug("raised after an interrupt", exc_info=error)
            message, code = INTERRUPTED, 130
        elif (shortage := _shortage(error)) is not None:
            message, code = f"failed: {shortage}", 1
        else:
            raise
    log_line(message)
    sys.exit(code)


@contextmanager
def _recorded(interrupts: list[int]) -> Iterator[None]:
    """Append the signal number to `interrupts` at each Ctrl-C during the block, besides the usual effect of Ctrl-C."""

    def record(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    # The process may already ignore or handle Ctrl-C, and only the main thread can install handlers.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is record:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _shortage(error: Exception) -> str | None:
    """Return a message if `error` is a full GPU, full storage or a failure of the study's data base; else None."""
    # These imports load PyTorch and Optuna; an error that concerns them has loaded them already.
    from condkd_ray.core.environment import is_out_of_memory, out_of_memory

    if is_out_of_memory(error):
        return out_of_memory(error)
    if (full := no_room(error)) is not None:
        return f"{full}; the same command continues once there is room"
    from condkd_ray.study.storage import refusal

    refused = refusal(error)
    return None if refused is None else f"{refused}; the same command continues after that is solved"


def exit_code_of(result: "RunResult") -> int:
    """Return the exit code of a run, and log a line if the run is not complete.

    0: no trial failed. 1: some failed. 3: the time or GPU budget is spent. 130: interrupted.
    """
    if result.complete:
        return 1 if result.failed else 0
    log_line(
        f"{f'the {result.spent[0]} budget is spent' if result.spent else 'interrupted'}; the same command continues"
    )
    return 3 if result.spent else 130
