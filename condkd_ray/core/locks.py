"""Locks on run folders: an exclusive lock for a run, shared locks for reports.

A shared lock keeps runs out of the folder while a report is made; several reports can hold one at the same time.

The lock is on the folder itself, so no file is written. On NFS an exclusive lock requires a file opened for writing
(`flock(2)`), and a folder cannot be opened for writing. There, and in folders that already contain it, the file `FILE`
in the folder is locked instead.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from condkd_ray.core.method import InputError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""Seconds that a run waits for reports on its folder to end; long enough for a busy machine (our choice)."""
NOTICE_SECONDS = 2.0
"""Seconds of waiting after which a log line is written."""
FILE = ".lock"
"""Name of the file that is locked if a folder cannot be locked."""
Claim = tuple[int, int]
"""Device and inode of a folder, which do not change when it is moved."""

_claimed: dict[Claim, int] = {}
"""File descriptors of the folders that this process has locked. The operating system closes them at process exit."""
_taken: ContextVar[list[Claim] | None] = ContextVar("taken", default=None)
"""Locks that this thread has taken within `released_after`; None outside of it."""


def claim(folder: Path, what: str) -> Claim | None:
    """Lock `folder` exclusively and return the lock; None if this process already holds it.

    `what` names the flag in error messages. Returns None also on a file system without locks. Raises `InputError` at
    once if another process runs in the folder, or after `PATIENCE_SECONDS` if a report on it has not ended.
    """
    status = folder.stat()
    key = status.st_dev, status.st_ino
    if key in _claimed:
        return None
    with ExitStack() as held:
        try:
            descriptor = _exclusively(folder, held, _lock)
        except (BlockingIOError, TimeoutError) as error:
            late = f"a report has not ended for {PATIENCE_SECONDS:g} s"
            there = late if isinstance(error, TimeoutError) else "another process runs"
            raise InputError(
                f"{what} is {str(folder)!r}, where {there}; accepted: another folder, or this one once that has ended"
            ) from None
        except OSError:  # a file system without locks
            return None
        held.pop_all()
    _claimed[key] = descriptor
    if (taken := _taken.get()) is not None:
        taken.append(key)
    return key


def claim_early(folder: Path, what: str) -> None:
    """Lock a folder before anything slow is imported. Raises `InputError` as `claim` does.

    A missing or unwritable folder is no error here; it is reported by the code that opens it.
    """
    if os.path.isdir(folder):  # raises nothing for any name
        with suppress(OSError):
            claim(folder, what)


def _exclusively(folder: Path, held: ExitStack, lock: Callable[[int], object]) -> int:
    """Lock the folder, or the file `FILE` in it, by `lock`; return the descriptor, which `held` closes on exit."""
    if not (folder / FILE).exists():
        descriptor = _opened(folder, held)
        try:
            lock(descriptor)
            return descriptor
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
    descriptor = _opened(folder / FILE, held, os.O_RDWR | os.O_CREAT)
    lock(descriptor)
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock a folder exclusively, after waiting for reports on it.

    Raises `BlockingIOError` if another process runs in it, `TimeoutError` if a report does not end.
    """
    began, noticed = time.monotonic(), False
    while True:
        waited = time.monotonic() - began
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if waited > PATIENCE_SECONDS:
                raise TimeoutError from None
        if waited > NOTICE_SECONDS and not noticed:
            log.info("waiting for a report on this folder to end")
            noticed = True
        # Raises if a run holds the lock: this function waits only for reports.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(0.05)


def release(taken: Claim | None) -> None:
    """Release a lock that `claim` returned. None and released locks are ignored."""
    if taken is not None and taken in _claimed:
        os.close(_claimed.pop(taken))


@contextmanager
def released_after() -> Iterator[None]:
    """Release at the end of the block the locks that this thread has taken in it."""
    token = _taken.set(taken := [])
    try:
        yield
    finally:
        _taken.reset(token)
        for key in taken:
            release(key)


@contextmanager
def kept(folder: Path) -> Iterator[bool]:
    """Hold a shared lock on `folder` during the block, which keeps runs of other processes out.

    Yields False, without a lock, if another process runs in the folder; else True, also if the folder does not exist or
    cannot be locked.
    """
    with ExitStack() as held:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) not in _claimed:
                there = folder / FILE
                locked = _opened(there if there.exists() else folder, held)
                fcntl.flock(locked, fcntl.LOCK_SH | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        except OSError:
            alone = True
        yield alone


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Allow only one process at a time in the block for `folder`. No effect on file systems without locks."""
    with ExitStack() as held:
        with suppress(OSError):
            _exclusively(folder, held, lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX))
        yield


def busy(folder: Path) -> bool:
    """Return whether another process runs in `folder`."""
    with kept(folder) as alone:
        return not alone


def _opened(path: Path, held: ExitStack, flags: int = os.O_RDONLY) -> int:
    """Open `path` and return the descriptor, which `held` closes on exit."""
    descriptor = os.open(path, flags, 0o666)
    held.callback(os.close, descriptor)
    if flags & os.O_CREAT:
        # Whatever the umask, another user of the folder must be able to lock the file. Only its owner can change this.
        with suppress(OSError):
            os.fchmod(descriptor, 0o666)
    return descriptor
