"""Runs the package's programs in the test process, which has already imported PyTorch and may have a Ray cluster.

A separate process needs about ten seconds to import them and to start Ray. It is used only for tests of signals, kills,
terminals and imports.
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
    """Restore the package's logger after the block, because programs configure it."""
    logger = logging.getLogger("condkd_ray")
    before = (logger.level, logger.propagate, list(logger.handlers))
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


def condkd(*arguments: object) -> CompletedProcess[str]:
    """Run `condkd` with these arguments and return exit code, standard output and standard error."""
    return _completed("condkd", arguments, __main__.main)


def script(path: Path, *arguments: object) -> CompletedProcess[str]:
    """Run a script with these arguments and return the same."""
    return _completed(str(path), arguments, lambda: runpy.run_path(str(path), run_name="__main__"))


def _completed(name: str, arguments: tuple[object, ...], program) -> CompletedProcess[str]:
    whole, code, output, errors = [name, *map(str, arguments)], 0, io.StringIO(), io.StringIO()
    # A program keeps its folder locks until its process ends; here they are released when it returns.
    with (
        locks.released_after(),
        logger_restored(),
        patch.object(sys, "argv", whole),
        # A process of xdist has no main file, as a notebook has none.
        patch.object(sys.modules["__main__"], "__file__", whole[0], create=True),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            program()
        except SystemExit as ended:
            code = ended.code or 0
    return CompletedProcess(whole, code, output.getvalue(), errors.getvalue())
