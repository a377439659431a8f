"""Folders that a process has for itself until it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condkd_ray.core.method import InputError

Claim = tuple[int, int]
"""A folder by device and inode, which moving it does not change."""

_claimed: dict[Claim, int] = {}
"""Descriptors of folders that this process has locked. The system lets go of them at its end."""


def claim(folder: Path, what: str) -> Claim | None:
    """Lock `folder`, the value of `what`: the lock that this call has taken; None where this process had it already.

    None too on a file system without locks. Raises `InputError` where another process has it.
    """
    status = folder.stat()
    key = status.st_dev, status.st_ino
    if key in _claimed:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{what} is {str(folder)!r}, where another process runs; accepted: a folder of its own, or the same once "
            "that has ended"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    _claimed[key] = descriptor
    return key


def let_go(taken: Claim | None) -> None:
    """Give back what a `claim` has taken."""
    if taken is not None:
        os.close(_claimed.pop(taken))


@contextmanager
def kept(folder: Path) -> Iterator[bool]:
    """Keep other processes from `folder` for the block; False where one runs there already, which is left alone.

    Where no process can lock, as where there is no such folder, nobody is taken to run.
    """
    taken = None
    try:
        taken = claim(folder, "folder")
    except InputError:
        yield False
        return
    except OSError:
        pass
    try:
        yield True
    finally:
        let_go(taken)


def busy(folder: Path) -> bool:
    """Whether another process runs in `folder`."""
    with kept(folder) as alone:
        return not alone
