"""Finds processes by their titles, and kills them."""

import os
import signal
from contextlib import suppress

import psutil

TITLES = {"trial": "ray::ImplicitFunc", "pool": "ray::SyntheticPool", "loader": "ray::ChunkLoader"}
"""Ray's titles of the processes that run trials, of the pool's process, and of the loaders of its chunks."""


def titles(ancestor: int) -> dict[int, str]:
    """Return the command lines of all processes below `ancestor`, by pid."""
    found = {}
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found[process.pid] = " ".join(process.cmdline())
    return found


def named(title: str, ancestor: int) -> list[int]:
    """Return the sorted pids below `ancestor` whose command line begins with `title`."""
    return sorted(pid for pid, found in titles(ancestor).items() if found.startswith(title))


def kill(pid: int) -> None:
    """Kill a process, if it still exists."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
