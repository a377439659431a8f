"""Reports during real runs, and runs without disk space for TensorBoard files: the runs continue with equal results."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from chaos.small_disk import free, small_disk
from places import EXPERIMENTS, permitted
from runs.small_search import SPACE, environment

from condkd_ray.core.records import read_records

TINY = {
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}, "training": {"epochs": 1}},
    "student": {"name": "resnet", "depth": 8, "width": 4},
    "inversion": {"name": "fast", "steps": 2, "batch": 32, "width": 8, "latent": 16},
    "condensation": {"name": "random_real"},
    "distiller": {"steps": 4, "batch": 32},
    "rounds": 8,
}

pytestmark = [pytest.mark.fault, pytest.mark.ray]


class Run:
    """An experiment or a search in a process of its own; `lines` are the lines of its output."""

    def __init__(self, home: Path, kind: str, out: str) -> None:
        self.out, self.lines = home / out, list[str]()
        command = {
            "experiment": [str(EXPERIMENTS / "ablate_ipc.py"), "--ipcs", "1", "--seeds", "0", "1", "--config"],
            "search": ["-m", "condkd_ray", "search", "--trials", "4"],
        }[kind]
        tree = yaml.safe_dump(TINY) if kind == "experiment" else SPACE
        (home / "given.yaml").write_text(tree)
        flags = [str(home / "given.yaml"), "--out", str(self.out), "--cache", str(home / "cache")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        flags += ["--max-concurrent", "1"]
        self.process = subprocess.Popen([sys.executable, *command, *flags], env=environment(), **pipes)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def end(self) -> int:
        """Wait for the end of the run and return its exit code."""
        code = self.process.wait(timeout=300)
        self._reader.join()
        self.process.stdout.close()
        return code

    @property
    def ended(self) -> int:
        """Number of trials that have a record."""
        return len(list(self.out.glob("records/*.json")))


@contextmanager
def running(home: Path, kind: str, out: str = "out") -> Iterator[Run]:
    run = Run(home, kind, out)
    try:
        yield run
    finally:
        run.process.kill()
        run.end()


def numbers(out: Path) -> dict[str, object]:
    """Return arm, status, metrics except times, and predictions of each trial, by hash."""
    found = {}
    for record in read_records(out):
        metrics = {name: value for name, value in record.metrics.items() if not name.startswith("time/")}
        found[record.config_hash] = (record.arm, record.status, metrics, record.outcome.predictions)
    return found


def report(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "condkd_ray", "report", str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)


@pytest.mark.parametrize("kind", ["experiment", "search"])
def test_reports_during_a_run_show_interim_results_and_do_not_change_the_run(tmp_path, kind):
    with running(tmp_path, kind, "undisturbed") as run:
        assert run.end() == 0, run.lines
    interim = 0
    with running(tmp_path, kind) as run:
        while run.process.poll() is None:
            if not (run.out / "experiment.json").is_file() or not (run.out / "tensorboard").is_dir():
                time.sleep(0.05)
                continue
            before = {path: path.stat().st_ino for path in (run.out / "tensorboard").rglob("events*")}
            done = report(run.out)
            assert done.returncode == 0, done.stderr
            if run.process.poll() is None and run.ended < len(numbers(tmp_path / "undisturbed")):
                interim += done.stdout.startswith("interim: ")
                assert all(path.stat().st_ino == inode for path, inode in before.items())
        assert run.end() == 0, run.lines
    assert interim
    assert not any("Traceback" in line or "cannot be written" in line for line in run.lines)
    assert numbers(run.out) == numbers(tmp_path / "undisturbed")
    assert not any(line.startswith("interim") for line in run.lines)
    table = "table.md" if kind == "experiment" else "search.md"
    assert "interim" not in (run.out / table).read_text()
    assert json.loads((run.out / "experiment.json").read_text())["planned"]


def test_a_run_continues_without_room_for_tensorboard_files_and_writes_them_at_its_end(tmp_path):
    with running(tmp_path, "experiment", "undisturbed") as run:
        assert run.end() == 0, run.lines
    out = tmp_path / "out"
    out.mkdir()
    with permitted(), small_disk(out / "tensorboard", "16k"), running(tmp_path, "experiment") as run:
        while run.process.poll() is None and not any("cannot be written" in line for line in run.lines):
            time.sleep(0.05)
        assert run.process.poll() is None, run.lines
        free(out / "tensorboard")
        assert run.end() == 0, run.lines
        (message,) = [line for line in run.lines if "cannot be written" in line]
        assert message.startswith(f"TensorBoard files in {out} cannot be written (")
        assert "No space left on device" in message
    assert numbers(out) == numbers(tmp_path / "undisturbed")
    runs, expected = (
        {path.parent.relative_to(folder) for path in (folder / "tensorboard").rglob("events*")}
        for folder in (out, tmp_path / "undisturbed")
    )
    assert runs == expected
