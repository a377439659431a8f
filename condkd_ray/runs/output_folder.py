"""The folder an experiment writes its results to: one experiment's alone, and locked while a process runs in it."""

import datetime
import fcntl
import itertools
import logging
import os
from pathlib import Path

from condkd_ray.core.method import InputError
from condkd_ray.core.records import check_same_experiment

log = logging.getLogger(__name__)


def open_folder(out: Path, experiment: str, *, fresh: bool) -> None:
    """Make `out` ready, for this process alone until it ends.

    Raises `InputError` for a file, a folder that cannot be written, another experiment's, one where a process runs.
    """
    if fresh and out.is_dir():
        taken = _claim(out)
        try:
            _move_aside(out)
        except InputError:
            _let_go(taken)
            raise
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


def _claim(out: Path) -> tuple[int, int] | None:
    """The key in `_claimed` of a lock that this call has taken; none where there was one, or there are no locks."""
    status = out.stat()
    key = status.st_dev, status.st_ino
    if key in _claimed:
        return None
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
        return None
    _claimed[key] = folder
    return key


def _let_go(key: tuple[int, int] | None) -> None:
    if key is not None:
        os.close(_claimed.pop(key))


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
    log.info(f"moved {out} to {aside}")
