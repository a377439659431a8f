"""Folders that a process has for itself until it ends, and those that reports share.

Who runs in a folder locks it exclusively. A report shares its lock with other reports: it keeps runs away for a while.

What is locked is the folder itself, so that nothing is written for it. NFS locks exclusively only what is open for
writing (`flock(2)`), which a folder cannot be: there it is a file in it, `FILE`, and wherever there is one.
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
"""In which reports have to end that are in the way of a run: seconds, on a busy machine many (our choice)."""
TOLD_SECONDS = 2.0
"""Of waiting for them, after which it is told of."""
FILE = ".lock"
Claim = tuple[int, int]
"""A folder by device and inode, which moving it does not change."""

_claimed: dict[Claim, int] = {}
"""Descriptors of folders that this process has locked. The system lets go of them at its end."""
_taken: ContextVar[list[Claim] | None] = ContextVar("taken", default=None)
"""Locks taken since `given_back` began, in a thread that is in it."""


def claim(folder: Path, what: str) -> Claim | None:
    """Lock `folder`, the value of `what`: the lock that this call has taken; None where this process had it already.

    None too on a file system without locks. Raises `InputError` where another process runs there, at once, or where
    reports do not end within `PATIENCE_SECONDS`.
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
                f"{what} is {str(folder)!r}, where {there}; accepted: a folder of its own, or the same once that has "
                "ended"
            ) from None
        except OSError:  # a file system without locks
            return None
        held.pop_all()
    _claimed[key] = descriptor
    if (taken := _taken.get()) is not None:
        taken.append(key)
    return key


def claim_early(folder: Path, what: str) -> None:
    """Claim a folder, the value of `what`, before anything heavy is imported. Raises `InputError` as `claim` does.

    Whether it is there, and can be written, is told by who opens it.
    """
    if os.path.isdir(folder):  # which raises nothing, whatever the name
        with suppress(OSError):
            claim(folder, what)


def _exclusively(folder: Path, held: ExitStack, lock: Callable[[int], object]) -> int:
    """The descriptor of what is locked of a folder by `lock`, for as long as it is `held`."""
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
    """Lock a folder once reports have ended.

    Raises `BlockingIOError` where a process runs in it, `TimeoutError` where a report stays.
    """
    began, told = time.monotonic(), False
    while True:
        waited = time.monotonic() - began
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if waited > PATIENCE_SECONDS:
                raise TimeoutError from None
        if waited > TOLD_SECONDS and not told:
            log.info("waiting for a report on this folder to end")
            told = True
        # Only a report shares it; who runs does not, and will be there for long.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(0.05)


def let_go(taken: Claim | None) -> None:
    """Give back what a `claim` has taken."""
    if taken is not None and taken in _claimed:
        os.close(_claimed.pop(taken))


@contextmanager
def given_back() -> Iterator[None]:
    """Give back, at the end of the block, the locks that this thread has taken in it."""
    token = _taken.set(taken := [])
    try:
        yield
    finally:
        _taken.reset(token)
        for key in taken:
            let_go(key)


@contextmanager
def kept(folder: Path) -> Iterator[bool]:
    """Keep runs of other processes from `folder` for the block, which several processes can do at once.

    False where one runs there already, which is left alone. Where no process can lock, as where there is no such
    folder, nobody is taken to run.
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
    """A block that no two processes are in at once, for one and the same `folder`; as many as come without locks."""
    with ExitStack() as held:
        with suppress(OSError):
            _exclusively(folder, held, lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX))
        yield


def busy(folder: Path) -> bool:
    """Whether another process runs in `folder`."""
    with kept(folder) as alone:
        return not alone


def _opened(path: Path, held: ExitStack, flags: int = os.O_RDONLY) -> int:
    """A descriptor for as long as it is `held`."""
    descriptor = os.open(path, flags, 0o666)
    held.callback(os.close, descriptor)
    return descriptor
