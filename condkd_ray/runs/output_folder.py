"""The folder of one experiment's results, which is locked while a process runs in it."""

import datetime
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condkd_ray.core.locks import claim, release, released_after
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import check_same_experiment

log = logging.getLogger(__name__)


_runs: set[Path] = set()
"""Folders in which calls of this process run. Locks of folders keep out other processes only."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Reserve `out` for one call of this process during the block, and then release the locks that the call has taken.

    Raises `InputError` if another call of this process runs in `out`.
    """
    whole = out.resolve()
    accepted = "another folder, or this one once that has ended"
    require(whole not in _runs, "--out", f"{out}, in use by another call of this process", accepted)
    _runs.add(whole)
    try:
        with released_after():
            yield
    finally:
        _runs.discard(whole)


def open_folder(out: Path, experiment: str, *, fresh: bool) -> None:
    """Create and lock `out` for this process until it ends; with `fresh`, first move an existing folder aside.

    Raises `InputError` if `out` is a file, cannot be written, belongs to another experiment, or another process runs
    in it.
    """
    if fresh and os.path.isdir(out):
        taken = claim(out, "--out")
        try:
            _move_aside(out)
        finally:
            release(taken)
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
