"""The folder an experiment writes its results to: one experiment's alone, and locked while a process runs in it."""

import datetime
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condkd_ray.core.locks import claim, given_back, let_go
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import check_same_experiment

log = logging.getLogger(__name__)


_runs: set[Path] = set()
"""Folders in which calls of this process run; a lock keeps out other processes alone."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep `out` for one call of this process, whose locks are given back at the end of the block.

    Raises `InputError` where a call of another thread runs there.
    """
    whole = out.resolve()
    accepted = "a folder of its own, or the same once that has ended"
    require(whole not in _runs, "--out", f"{out}, where another call of this process runs", accepted)
    _runs.add(whole)
    try:
        with given_back():
            yield
    finally:
        _runs.discard(whole)


def open_folder(out: Path, experiment: str, *, fresh: bool) -> None:
    """Make `out` ready, for this process alone until it ends.

    Raises `InputError` for a file, a folder that cannot be written, another experiment's, one where a process runs.
    """
    if fresh and os.path.isdir(out):
        taken = claim(out, "--out")
        try:
            _move_aside(out)
        finally:
            let_go(taken)
    check_same_experiment(out, experiment)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out is {str(out)!r}; accepted: a folder that can be written ({error.strerror})") from None
    claim(out, "--out")


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
