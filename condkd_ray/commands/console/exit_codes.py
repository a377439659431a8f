"""What every program here does the same: words to the user, exit codes, the output folder, the CPU time spent."""

from __future__ import annotations

import datetime
import fcntl
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from condkd_ray.commands.console import SCREEN
from condkd_ray.core.files import no_room
from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.records import check_same_experiment

log = logging.getLogger(__name__)


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
    """Bad input: one message and exit code 2. A teacher or set that came out as NaN, full storage: 1. Ctrl-C: 130."""
    speak()
    try:
        yield
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except NonFiniteError as error:
        say(f"failed: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        sys.exit(130)
    except Exception as error:
        full = no_room(error)
        if full is None:
            raise
        say(f"failed: {full}; the same command continues once there is room")
        sys.exit(1)


def ended(complete: bool, failed: int, spent: Sequence[str]) -> int:
    """The exit code of a run, and words where it is not complete. `spent`: the names of budgets that are."""
    if complete:
        return 1 if failed else 0
    say(f"{f'the {spent[0]} budget is spent' if spent else 'interrupted'}; the same command continues")
    return 3 if spent else 130


def open_folder(out: Path, experiment: str, *, fresh: bool) -> None:
    """Make `out` ready, for this process alone until it ends.

    Raises `InputError` for a file, a folder that cannot be written, another experiment's, one where a process runs.
    """
    if fresh and out.is_dir():
        _claim(out)
        _move_aside(out)
    check_same_experiment(out, experiment)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out is {str(out)!r}; accepted: a folder that can be written ({error.strerror})") from None
    _claim(out)


_claimed: dict[tuple[int, int], int] = {}
"""Descriptors of folders that this process has locked, by device and inode. The system lets go of them at its end."""


def _claim(out: Path) -> None:
    status = out.stat()
    if (status.st_dev, status.st_ino) in _claimed:
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise InputError(
            f"--out is {str(out)!r}, where another process runs; accepted: a folder of its own, or the same once that "
            "has ended"
        ) from None
    except OSError:  # a file system without locks
        os.close(folder)
        return
    _claimed[status.st_dev, status.st_ino] = folder


def _move_aside(out: Path) -> None:
    whole = out.resolve()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (whole.parent / f"{whole.name}.{stamp}{suffix}" for suffix in suffixes)
    try:
        aside = next(path for path in paths if not path.exists())
        whole.rename(aside)
    except OSError as error:
        raise InputError(f"--out is {str(out)!r}; accepted with --fresh: a folder to move ({error.strerror})") from None
    say(f"moved {out} to {aside}")


class CpuClock:
    """CPU seconds of this process and all it starts on this machine, Ray's processes included.

    A process that Ray ends takes its times with it, so whoever runs a sweep has to `look` now and then; what a process
    spends between the last look and its end is missed.
    """

    def __init__(self) -> None:
        self._spent: dict[psutil.Process, float] = {}

    def look(self) -> float:
        """The seconds so far."""
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            self._spent[process] = max(self._spent.get(process, 0.0), _cpu_seconds(process))
        return sum(self._spent.values())


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended between two lines
        return 0.0
    return times.user + times.system
