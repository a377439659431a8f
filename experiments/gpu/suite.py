"""(b) Runs the tests that need a GPU, with pytest in a separate process."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import psutil

from gpu.parts import Box, Setup, SkippedError, Verdict

log = logging.getLogger("condkd_ray.gpu")

CHECKOUT = Path(__file__).parents[2]
LEFT_OUT = re.compile(r"^SKIPPED .* needs (ray|optuna|tyro)$")
KEPT = 20
"""Number of output lines that are stored."""
ENDING = 10.0
"""Seconds in which a killed process is expected to end."""


def suite(setup: Setup, box: Box) -> Verdict:
    """Run `pytest -m gpu` on the files that have such tests; files that need Ray or tyro are skipped without them."""
    if find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    files = files_of(CHECKOUT / "tests")
    # In one process, because there is one GPU.
    plain = ["-v", "-rs", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "gpu.left_out"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *plain, *map(str, files)]
    seconds = max(box.left - 1, 1)
    code, lines = output_of(command, seconds)
    if code is None:
        return _unfinished(box, lines, seconds)
    box.note("left out", [line for line in lines if LEFT_OUT.search(line)])
    box.note("output", lines[-KEPT:])
    return Verdict(code == 0, f"{lines[-1].strip('= ') if lines else 'no output'} (exit code {code})")


def output_of(command: list[str], seconds: float) -> tuple[int | None, list[str]]:
    """Return exit code and output lines of a program; if its time ended, None and the lines so far.

    Afterwards neither the program nor a process that it started is running, which would occupy the GPU.
    """
    given: dict[str, Any] = {"cwd": CHECKOUT, "env": environment(), "text": True, "stdout": PIPE, "stderr": STDOUT}
    # A separate session, so that all its processes can be killed at once.
    with subprocess.Popen(command, start_new_session=True, errors="replace", **given) as program:
        code = None
        try:
            text = program.communicate(timeout=seconds)[0]
            code = program.returncode
        except subprocess.TimeoutExpired:
            _end_all(program)
            text = program.communicate()[0]
        finally:
            _end_all(program)
    return code, text.splitlines()


def _end_all(program: subprocess.Popen[str]) -> None:
    """Kill the program and all processes of its session, and wait until they have ended.

    A killed process closes its output before its memory, including the GPU's, is freed.
    """
    until = time.monotonic() + ENDING
    while left := _alive(program.pid):
        for number in left:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(number, signal.SIGKILL)
        if time.monotonic() > until:
            log.warning(f"killed, but still running after {ENDING:.0f} s: processes {left}")
            return
        time.sleep(0.01)


def _alive(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it ended between two lines
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _unfinished(box: Box, lines: list[str], seconds: float) -> Verdict:
    """Fail if a test has failed so far. Raises `SkippedError` if none has."""
    failed = [line for line in lines if " FAILED" in line or " ERROR" in line]
    passed = sum(" PASSED" in line for line in lines)
    box.note("output", failed or lines[-KEPT:])
    text = f"{passed} passed and {len(failed)} failed when {seconds:.0f} s were over"
    if not failed:
        raise SkippedError(f"time: {text}")
    return Verdict(False, text)


def files_of(tests: Path) -> list[Path]:
    """Return the test files with GPU tests, without the cluster's, which import Ray.

    Files that need the compiler take a minute or more and come last. A file has GPU tests if it has the mark, or
    imports a module of the tests that has it. Collecting all files would take half a minute.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(tests.rglob("*.py"))}
    marked = {path for path, text in texts.items() if "mark.gpu" in text}
    helpers = [_module(path, tests) for path in marked if not path.name.startswith("test_")]
    found = [
        path
        for path, text in texts.items()
        if path.name.startswith("test_") and (path in marked or any(f"from {name} import" in text for name in helpers))
    ]
    kept = [path for path in found if "cluster" not in path.relative_to(tests).parts]
    return sorted(kept, key=lambda path: "compiled" in path.name)


def _module(path: Path, tests: Path) -> str:
    """Return the name by which tests import a module."""
    return ".".join(path.relative_to(tests).with_suffix("").parts)


def environment() -> dict[str, str]:
    """Return the environment of the tests: the user's, without settings for other tests, and with this checkout."""
    paths = [str(CHECKOUT), str(CHECKOUT / "experiments"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Leave out variables that another pytest process or the user has set for other tests.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return {**own, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
