"""The output folder of an experiment: made, locked, moved aside, and refused if another experiment owns it."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from condkd_ray.core.method import InputError
from condkd_ray.runs.output_folder import open_folder


def write_manifest(out, experiment="train", format=1):
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"experiment": experiment, "question": "", "command": "", "created": "", "format": format}
    (out / "experiment.json").write_text(json.dumps(manifest))


def test_a_new_folder_is_made_and_a_folder_of_the_same_experiment_stays_unchanged(tmp_path):
    open_folder(tmp_path / "a" / "b", "train", fresh=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    write_manifest(tmp_path / "own")
    open_folder(tmp_path / "own", "train", fresh=False)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["experiment.json"]


def test_fresh_moves_earlier_results_aside_each_time(tmp_path, logged):
    for content in ("first", "second"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / "result").write_text(content)
        open_folder(tmp_path / "runs", "train", fresh=True)
        assert list((tmp_path / "runs").iterdir()) == []
    kept = sorted((path / "result").read_text() for path in tmp_path.glob("runs.*"))
    assert kept == ["first", "second"]
    assert sum(message.startswith("moved ") for message in logged) == 2


def test_fresh_without_earlier_results_makes_a_new_folder(tmp_path, logged):
    open_folder(tmp_path / "runs", "train", fresh=True)
    assert logged == []


def test_fresh_also_moves_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result").touch()
    monkeypatch.chdir(tmp_path / "runs")
    open_folder(Path("."), "train", fresh=True)
    assert [path.name for path in tmp_path.glob("runs.*/*")] == ["result"]


@pytest.fixture
def fixed(tmp_path, monkeypatch) -> Path:
    """A folder that is in use and cannot be moved."""

    def busy(path: Path, aside: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    out = tmp_path / "runs"
    out.mkdir()
    (out / "mine").write_text("kept")
    monkeypatch.setattr(Path, "rename", busy)
    return out


UNMOVED = r"runs'; accepted with --fresh: a folder to move \(Device or resource busy\)"


def locked(folder: Path) -> bool:
    """Return whether this process holds the lock; a lock of this process is refused to any other descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_folder_that_cannot_be_moved_is_refused_and_unlocked(fixed):
    with pytest.raises(InputError, match=UNMOVED):
        open_folder(fixed, "train", fresh=True)
    assert (fixed / "mine").read_text() == "kept"
    assert not locked(fixed)


def test_a_folder_that_this_process_opened_before_stays_locked(fixed):
    write_manifest(fixed)
    open_folder(fixed, "train", fresh=False)
    with pytest.raises(InputError, match=UNMOVED):
        open_folder(fixed, "train", fresh=True)
    assert locked(fixed)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_is_refused_and_stays(tmp_path, fresh):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"--out .*out is a file; accepted: a new folder"):
        open_folder(tmp_path / "out", "train", fresh=fresh)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(InputError, match=rf"--out is '{out}'; accepted: a folder that can be written"):
            open_folder(out, "train", fresh=False)


def test_the_results_of_another_experiment_are_refused(tmp_path):
    write_manifest(tmp_path, "ablate_ipc")
    with pytest.raises(InputError, match=r"holds experiment 'ablate_ipc'; accepted: a new folder, or one of 'train'"):
        open_folder(tmp_path, "train", fresh=False)


def test_results_of_another_format_are_refused(tmp_path):
    write_manifest(tmp_path, format=99)
    with pytest.raises(InputError, match=r"format is 99; accepted: 1"):
        open_folder(tmp_path, "train", fresh=False)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_is_for_one_process_at_a_time(tmp_path, fresh):
    hold = "import time; from pathlib import Path; from condkd_ray.runs.output_folder import open_folder\n"
    hold += f"open_folder(Path({str(tmp_path)!r}), 'train', fresh=False); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=r"--out is '.*', where another process runs; accepted: another folder"):
            open_folder(tmp_path, "train", fresh=fresh)
        other.kill()
    assert tmp_path.is_dir()
    open_folder(tmp_path, "train", fresh=fresh)
    open_folder(tmp_path, "train", fresh=False)
