"""(b) The tests that need a GPU, by pytest in a process of its own."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

from gpu.parts import Box, Setup, SkippedError, Verdict

CHECKOUT = Path(__file__).parents[2]
LEFT_OUT = re.compile(r"^SKIPPED .* needs (ray|optuna|tyro)$")
KEPT = 20
"""Lines of the output that are kept."""


def suite(setup: Setup, box: Box) -> Verdict:
    """`pytest -m gpu` over the files that have such tests; those that need Ray or tyro are skipped without it."""
    if find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    files = files_of(CHECKOUT / "tests")
    plain = ["-v", "-rs", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu.left_out"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *plain, *map(str, files)]
    given: dict[str, Any] = {"cwd": CHECKOUT, "env": _environment(), "text": True, "stdout": PIPE, "stderr": STDOUT}
    try:
        done = subprocess.run(command, timeout=max(box.left - 1, 1), **given)
    except subprocess.TimeoutExpired as expired:
        return _unfinished(box, expired)
    told = done.stdout.splitlines()
    box.note("left out", [line for line in told if LEFT_OUT.search(line)])
    box.note("output", told[-KEPT:])
    return Verdict(
        done.returncode == 0, f"{told[-1].strip('= ') if told else 'no output'} (exit code {done.returncode})"
    )


def _unfinished(box: Box, expired: subprocess.TimeoutExpired) -> Verdict:
    """Failed where a test has failed by now. Raises `SkippedError` where none has."""
    # It is bytes whatever was asked for.
    lines = (expired.stdout or b"").decode(errors="replace").splitlines()
    failed = [line for line in lines if " FAILED" in line or " ERROR" in line]
    passed = sum(" PASSED" in line for line in lines)
    box.note("output", failed or lines[-KEPT:])
    told = f"{passed} passed and {len(failed)} failed when {expired.timeout:.0f} s were over"
    if not failed:
        raise SkippedError(f"time: {told}")
    return Verdict(False, told)


def files_of(tests: Path) -> list[Path]:
    """Test files with a test for a GPU, but those of the cluster: these import Ray, which need not be there."""
    found = sorted(path for path in tests.rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    return [path for path in found if "cluster" not in path.relative_to(tests).parts]


def _environment() -> dict[str, str]:
    paths = [str(CHECKOUT), str(CHECKOUT / "experiments"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
