"""The package's programs, run within the process of the tests, which has PyTorch and perhaps a Ray cluster already.

A process of its own takes some ten seconds to import them and to start Ray, so it is for what needs one: signals,
kills, terminals, and what is imported when.
"""

import io
import logging
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from condkd_ray import __main__
from condkd_ray.core import locks


@contextmanager
def logger_restored() -> Iterator[None]:
    """The package's logger is left as it was found: programs have it write for their users."""
    logger = logging.getLogger("condkd_ray")
    before = (logger.level, logger.propagate, list(logger.handlers))
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


def condkd(*arguments: object) -> CompletedProcess[str]:
    """`condkd` with these arguments: exit code, standard output and standard error."""
    return _ended("condkd", arguments, __main__.main)


def script(path: Path, *arguments: object) -> CompletedProcess[str]:
    """A script with these arguments."""
    return _ended(str(path), arguments, lambda: runpy.run_path(str(path), run_name="__main__"))


def _ended(name: str, arguments: tuple[object, ...], program) -> CompletedProcess[str]:
    whole, code, said, told = [name, *map(str, arguments)], 0, io.StringIO(), io.StringIO()
    claimed = set(locks._claimed)
    with logger_restored(), patch.object(sys, "argv", whole), redirect_stdout(said), redirect_stderr(told):
        try:
            program()
        except SystemExit as ended:
            code = ended.code or 0
    # A process has its folders until it ends, which this one does not yet.
    for taken in set(locks._claimed) - claimed:
        locks.let_go(taken)
    return CompletedProcess(whole, code, said.getvalue(), told.getvalue())
