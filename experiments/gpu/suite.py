"""(b) The tests that need a GPU, by pytest in a process of its own."""

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
"""Lines of the output that are kept."""
ENDING = 10.0
"""Seconds within which a killed process is expected to be gone."""


def suite(setup: Setup, box: Box) -> Verdict:
    """`pytest -m gpu` over the files that have such tests; those that need Ray or tyro are skipped without it."""
    if find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    files = files_of(CHECKOUT / "tests")
    # In one process, as there is one GPU.
    plain = ["-v", "-rs", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "gpu.left_out"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *plain, *map(str, files)]
    seconds = max(box.left - 1, 1)
    code, told = _output(command, seconds)
    if code is None:
        return _unfinished(box, told, seconds)
    box.note("left out", [line for line in told if LEFT_OUT.search(line)])
    box.note("output", told[-KEPT:])
    return Verdict(code == 0, f"{told[-1].strip('= ') if told else 'no output'} (exit code {code})")


def _output(command: list[str], seconds: float) -> tuple[int | None, list[str]]:
    """Exit code and lines of a program; None for the code, and the lines so far, where its time was over.

    In no case is it, or a program that it has started, still there afterwards, which would hold the GPU.
    """
    given: dict[str, Any] = {"cwd": CHECKOUT, "env": _environment(), "text": True, "stdout": PIPE, "stderr": STDOUT}
    # A session of its own, so that all its processes can be ended at once.
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
    """Kill the program and all processes of its session, and wait until they are gone.

    A killed process closes its output before it gives back its memory, that of the GPU too.
    """
    until = time.monotonic() + ENDING
    while left := _alive(program.pid):
        for number in left:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(number, signal.SIGKILL)
        if time.monotonic() > until:
            log.warning(f"killed, but still there after {ENDING:.0f} s: processes {left}")
            return
        time.sleep(0.01)


def _alive(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it ended between two lines
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _unfinished(box: Box, lines: list[str], seconds: float) -> Verdict:
    """Failed where a test has failed by now. Raises `SkippedError` where none has."""
    failed = [line for line in lines if " FAILED" in line or " ERROR" in line]
    passed = sum(" PASSED" in line for line in lines)
    box.note("output", failed or lines[-KEPT:])
    told = f"{passed} passed and {len(failed)} failed when {seconds:.0f} s were over"
    if not failed:
        raise SkippedError(f"time: {told}")
    return Verdict(False, told)


def files_of(tests: Path) -> list[Path]:
    """Test files with a test for a GPU, but those of the cluster: these import Ray, which need not be there.

    What the compiler is needed for, which takes a minute and more, comes last. A file has such a test if it has the
    mark, or imports a module beside the tests that has it. To collect all files would take half a minute.
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
    """By which name tests import it."""
    return ".".join(path.relative_to(tests).with_suffix("").parts)


def _environment() -> dict[str, str]:
    paths = [str(CHECKOUT), str(CHECKOUT / "experiments"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Neither what another pytest hands to its processes nor what a user has set for other tests is meant for these.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return {**own, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
