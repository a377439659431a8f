"""Drivers in processes and sessions of their own, which tests send signals to and start again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import toy
from places import TESTS

from cluster import driver_script, processes
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.view import NONE
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.run import local_store, run_trial

PATH = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])


def direct(config: TrialConfig) -> Outcome:
    """Return the outcome of a trial that runs undisturbed, without Ray."""
    prepared = toy.make_prepared()
    return run_trial(config, prepared, local_store(config, prepared, None))


def timeless(history: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in history]


def assert_equal_numbers(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.status == expected.status == "finished"
    assert timeless(outcome.history) == timeless(expected.history)
    assert outcome.predictions == expected.predictions
    assert torch.equal(outcome.images, expected.images)
    assert outcome.metrics["student/test_accuracy"] == expected.metrics["student/test_accuracy"]


class Driver:
    """A running `driver_script.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines: list[str] = []

    def until(self, *beginnings: str) -> None:
        """Read on until a line has begun with each of `beginnings`."""
        assert self._process.stdout is not None
        waited_for = set(beginnings)
        while waited_for:
            line = self._process.stdout.readline()
            assert line, f"{self.lines} ended without {waited_for}"
            self.lines.append(line.strip())
            waited_for = {start for start in waited_for if not line.startswith(start)}

    def pids(self) -> dict[int, str]:
        """Return the pids of the driver and of all its descendants, with their command lines."""
        return {self._process.pid: "driver"} | processes.descendants(self._process.pid)

    def hit(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the driver; with `group` to its process group, as a terminal does on Ctrl-C."""
        (os.killpg if group else os.kill)(self._process.pid, number)

    @property
    def runs(self) -> bool:
        """Whether the driver has not ended."""
        return self._process.poll() is None

    def end(self) -> int:
        """Wait for the end of the driver and return its exit code."""
        rest, _ = self._process.communicate(timeout=300)
        self.lines += rest.splitlines()
        return self._process.returncode


@contextmanager
def driving(
    folder: Path,
    address: str = "local",
    times: int = 1,
    *,
    within: Sequence[str] = (),
    environment: Mapping[str, str] = NONE,
) -> Iterator[Driver]:
    """Start a driver with its files in `folder` and `times` as many rounds; it is killed at the end of the block.

    `within` is a command put in front of the driver's, which runs it in another environment, such as a control group.
    """
    script = [sys.executable, str(TESTS / "cluster" / "driver_script.py"), str(folder), address, str(times)]
    command, environment = [*within, *script], {**os.environ, "PYTHONPATH": PATH, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            yield Driver(process)
        finally:
            if process.poll() is None:
                process.kill()


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Return the outcomes stored under `folder`, by key."""
    return {path.stem: load_outcome(path) for path in (folder / "done").glob("[a-z].safetensors")}


def finish(folder: Path, address: str = "local") -> None:
    """Start the same command again, and compare all outcomes with those of undisturbed trials."""
    before = {key: driver_script.done_path(folder, key).stat().st_mtime_ns for key in outcomes(folder)}
    with driving(folder, address) as again:
        assert again.end() == 0, again.lines
    assert again.lines[-1] == "complete"
    for key, when in before.items():
        assert driver_script.done_path(folder, key).stat().st_mtime_ns == when, f"{key} was run twice"
    assert_undisturbed(folder)


def assert_undisturbed(folder: Path) -> None:
    """Check that all trials are done with the numbers of runs without Ray, and that no files of trials are left."""
    assert set(outcomes(folder)) == set(driver_script.ROUNDS)
    for key, outcome in outcomes(folder).items():
        assert_equal_numbers(outcome, undisturbed()[key])
    assert [path for name in ("trials", "chunks", "tune") for path in (folder / name).glob("*/")] == []


@cache
def undisturbed() -> dict[str, Outcome]:
    """Return the outcomes of the driver script's trials without Ray."""
    return {key: direct(config) for key, config in driver_script.configs().items()}


def assert_gone(pids: dict[int, str], seconds: float = 180) -> None:
    """Wait until all processes have ended.

    Ray's processes end by themselves, at most 64 s after their head has ended; a busy machine is slower.
    """
    deadline = time.monotonic() + seconds
    while left := {pid: title for pid, title in pids.items() if Path("/proc", str(pid)).exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
