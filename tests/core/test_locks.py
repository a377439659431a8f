"""Tests of the locks on run folders; see also `tests/runs/test_output_folder.py`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from condkd_ray.core import locks
from condkd_ray.core.locks import busy, claim, claim_early, in_turn, kept, release
from condkd_ray.core.method import InputError

RUN = "import sys, pathlib; from condkd_ray.core.locks import claim; claim(pathlib.Path(sys.argv[1]), 'it'); print(1)"


@contextmanager
def run_in(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock on `folder` in another process during the block."""
    command = [sys.executable, "-c", f"{RUN}; sys.stdout.flush(); sys.stdin.read()", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        yield
        process.stdin.close()


def test_a_folder_in_which_another_process_runs_cannot_be_claimed(tmp_path):
    with run_in(tmp_path):
        assert busy(tmp_path)
        with kept(tmp_path) as alone:
            assert not alone
        with pytest.raises(InputError, match="where another process runs"):
            claim(tmp_path, "--out")
    assert not busy(tmp_path)


def test_kept_blocks_other_processes_during_its_block(tmp_path):
    short_wait = "from condkd_ray.core import locks; locks.PATIENCE_SECONDS = 0.5"
    command = [sys.executable, "-c", f"{short_wait}; {RUN}", str(tmp_path)]
    with kept(tmp_path) as alone:
        assert alone
        found = subprocess.run(command, capture_output=True, text=True)
        assert "where a report has not ended for 0.5 s; accepted: another folder, or" in found.stderr
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def test_a_claimed_folder_stays_claimed_after_kept(tmp_path):
    claimed = claim(tmp_path, "--out")
    with kept(tmp_path) as alone:
        assert alone
    assert not busy(tmp_path)
    found = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert "where another process runs" in found.stderr
    release(claimed)


def test_a_missing_folder_is_not_busy(tmp_path):
    assert not busy(tmp_path / "missing")
    with kept(tmp_path / "missing") as alone:
        assert alone


REPORT = "import sys, pathlib; from condkd_ray.core.locks import busy, kept; k = kept(pathlib.Path(sys.argv[1]))"


def test_several_reports_can_hold_a_folder(tmp_path):
    code = f"{REPORT}; print(busy(pathlib.Path(sys.argv[1])), k.__enter__())"
    with kept(tmp_path) as alone, kept(tmp_path) as again:
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["False", "True"]
        assert alone
        assert again
        assert not busy(tmp_path)


def test_a_run_waits_for_a_report_that_ends_soon(tmp_path):
    code = f"{REPORT}; k.__enter__(); print(1); sys.stdout.flush(); import time; time.sleep(0.5)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as report:
        assert report.stdout.readline() == "1\n"
        claimed = claim(tmp_path, "--out")
    assert claimed is not None
    release(claimed)


def test_waiting_for_a_report_is_logged(tmp_path, monkeypatch, logged):
    monkeypatch.setattr(locks, "NOTICE_SECONDS", 0.1)
    code = f"{REPORT}; k.__enter__(); print(1); sys.stdout.flush(); import time; time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as report:
        assert report.stdout.readline() == "1\n"
        release(claim(tmp_path, "--out"))
    assert logged == ["waiting for a report on this folder to end"]


def test_claim_does_not_wait_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("claim waits"))
    with run_in(tmp_path), pytest.raises(InputError, match="where another process runs"):
        claim(tmp_path, "--out")


def test_in_turn_allows_one_process_at_a_time(tmp_path):
    code = "import sys, pathlib; from condkd_ray.core.locks import in_turn; k = in_turn(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; k.__enter__(); print(1)", str(tmp_path)]
    with in_turn(tmp_path):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
    assert other.communicate(timeout=30)[0] == "1\n"
    with in_turn(tmp_path / "missing"):
        pass


AS_NFS = """
import errno, fcntl, os, stat, sys
from pathlib import Path
plain = fcntl.flock

def flock(descriptor, operation):
    # As flock(2) describes for NFS: an exclusive lock requires a descriptor open for writing; folders have none.
    if operation & fcntl.LOCK_EX and stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    plain(descriptor, operation)

fcntl.flock = flock
from condkd_ray.core.locks import *
from condkd_ray.core.method import InputError
out = Path(sys.argv[1])
"""
RUNS = "print(claim(out, '--out') is not None, flush=True); sys.stdin.read()"
TRIES = """
print(busy(out))
try:
    claim(out, '--out')
except InputError as error:
    print(error)
with in_turn(out):
    print('in turn')
"""


def test_a_file_is_locked_where_folders_cannot_be(tmp_path):
    run, attempt = ([sys.executable, "-c", AS_NFS + code, str(tmp_path)] for code in (RUNS, TRIES))
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        other = subprocess.Popen(attempt, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "True\n"
        assert "where another process runs" in other.stdout.readline()
        # This also holds for a process that sees the folder on a local disk.
        assert busy(tmp_path)
        process.stdin.close()
        assert other.communicate(timeout=30)[0] == "in turn\n"
    assert not busy(tmp_path)
    claimed = claim(tmp_path, "--out")
    with subprocess.Popen(attempt, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert "where another process runs" in other.stdout.readline()
        release(claimed)
        assert other.communicate(timeout=30)[0] == "in turn\n"


def test_no_file_is_created_where_folders_can_be_locked(tmp_path):
    release(claim(tmp_path, "--out"))
    with kept(tmp_path):
        pass
    with in_turn(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_claim_early_locks_existing_folders(tmp_path):
    claim_early(tmp_path / "none", "--out")
    assert list(tmp_path.iterdir()) == []
    with run_in(tmp_path), pytest.raises(InputError, match=r"--out is .*, where another process runs"):
        claim_early(tmp_path, "--out")
    claim_early(tmp_path, "--out")
    finished = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert "where another process runs" in finished.stderr
