"""Processes by what they are, and their end."""

import os
import signal
from contextlib import suppress

import psutil

TITLES = {"trial": "ray::ImplicitFunc", "pool": "ray::SyntheticPool"}
"""What Ray calls the processes that run trials, and the pool's."""


def titles(ancestor: int) -> dict[int, str]:
    """Command lines of all processes below `ancestor`, by pid."""
    found = {}
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found[process.pid] = " ".join(process.cmdline())
    return found


def named(title: str, ancestor: int) -> list[int]:
    """Pids below `ancestor` of which the command line begins with `title`, in order."""
    return sorted(pid for pid, found in titles(ancestor).items() if found.startswith(title))


def kill(pid: int) -> None:
    """If it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
