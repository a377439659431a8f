"""(b) The tests that need a GPU, by pytest in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from gpu.parts import Box, Setup, SkippedError, Verdict

CHECKOUT = Path(__file__).parents[2]
KEPT = 20
"""Lines of the output that are kept."""


def suite(setup: Setup, box: Box) -> Verdict:
    """`pytest -m gpu` over the files that have such tests and need no Ray."""
    if find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    files = files_of(CHECKOUT / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *map(str, files)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=CHECKOUT, env=_environment(), timeout=max(box.left - 1, 1)
        )
    except subprocess.TimeoutExpired as expired:
        text = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        box.note("output", text.splitlines()[-KEPT:])
        raise SkippedError(f"time: pytest was still running after {expired.timeout:.0f} s") from None
    told = (done.stdout + done.stderr).splitlines()
    box.note("output", told[-KEPT:])
    return Verdict(done.returncode == 0, f"{told[-1] if told else 'no output'} (exit code {done.returncode})")


def files_of(tests: Path) -> list[Path]:
    """Test files with a test for a GPU, but those of the cluster: these import Ray, which need not be there."""
    found = sorted(path for path in tests.rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    return [path for path in found if "cluster" not in path.relative_to(tests).parts]


def _environment() -> dict[str, str]:
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
