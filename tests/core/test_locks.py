"""Folders that a process has for itself; see also `tests/runs/test_output_folder.py`."""

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
    """Another process runs in `folder`."""
    command = [sys.executable, "-c", f"{RUN}; sys.stdout.flush(); sys.stdin.read()", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        yield
        process.stdin.close()


def test_a_folder_in_which_another_process_runs_is_left_to_it(tmp_path):
    with run_in(tmp_path):
        assert busy(tmp_path)
        with kept(tmp_path) as alone:
            assert not alone
        with pytest.raises(InputError, match="where another process runs"):
            claim(tmp_path, "--out")
    assert not busy(tmp_path)


def test_others_are_kept_from_a_folder_for_a_while(tmp_path):
    impatient = "from condkd_ray.core import locks; locks.PATIENCE_SECONDS = 0.5"
    command = [sys.executable, "-c", f"{impatient}; {RUN}", str(tmp_path)]
    with kept(tmp_path) as alone:
        assert alone
        found = subprocess.run(command, capture_output=True, text=True)
        assert "where a report has not ended for 0.5 s; accepted: a folder of its own, or" in found.stderr
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def test_what_this_process_runs_in_is_its_own_before_and_after(tmp_path):
    taken = claim(tmp_path, "--out")
    with kept(tmp_path) as alone:
        assert alone
    assert not busy(tmp_path)
    found = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert "where another process runs" in found.stderr
    release(taken)


def test_where_there_is_no_folder_nobody_runs(tmp_path):
    assert not busy(tmp_path / "missing")
    with kept(tmp_path / "missing") as alone:
        assert alone


REPORT = "import sys, pathlib; from condkd_ray.core.locks import busy, kept; k = kept(pathlib.Path(sys.argv[1]))"


def test_reports_do_not_take_one_another_for_a_run(tmp_path):
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
        taken = claim(tmp_path, "--out")
    assert taken is not None
    release(taken)


def test_it_is_told_that_a_run_waits_for_a_report(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(locks, "NOTICE_SECONDS", 0.1)
    code = f"{REPORT}; k.__enter__(); print(1); sys.stdout.flush(); import time; time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as report:
        assert report.stdout.readline() == "1\n"
        release(claim(tmp_path, "--out"))
    assert heard == ["waiting for a report on this folder to end"]


def test_who_runs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with run_in(tmp_path), pytest.raises(InputError, match="where another process runs"):
        claim(tmp_path, "--out")


def test_of_two_processes_one_after_the_other_has_its_turn(tmp_path):
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
    # As flock(2) tells of NFS: an exclusive lock needs a descriptor that is open for writing, as no folder's is.
    if operation & fcntl.LOCK_EX and stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    plain(descriptor, operation)

fcntl.flock = flock
from condkd_ray.core.locks import *
from condkd_ray.core.method import InputError
out = Path(sys.argv[1])
"""
RUNS = "print(claim(out, '--out') is not None, flush=True); sys.stdin.read()"
ASKS = """
print(busy(out))
try:
    claim(out, '--out')
except InputError as error:
    print(error)
with in_turn(out):
    print('in turn')
"""


def test_where_folders_cannot_be_locked_a_file_in_them_is(tmp_path):
    run, ask = ([sys.executable, "-c", AS_NFS + code, str(tmp_path)] for code in (RUNS, ASKS))
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        asking = subprocess.Popen(ask, stdout=subprocess.PIPE, text=True)
        assert asking.stdout.readline() == "True\n"
        assert "where another process runs" in asking.stdout.readline()
        # A process that sees the same folder as its own disk's, too.
        assert busy(tmp_path)
        process.stdin.close()
        assert asking.communicate(timeout=30)[0] == "in turn\n"
    assert not busy(tmp_path)
    taken = claim(tmp_path, "--out")
    with subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout.readline() == "True\n"
        assert "where another process runs" in asking.stdout.readline()
        release(taken)
        assert asking.communicate(timeout=30)[0] == "in turn\n"


def test_no_file_is_made_where_folders_can_be_locked(tmp_path):
    release(claim(tmp_path, "--out"))
    with kept(tmp_path):
        pass
    with in_turn(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_claimed_early_where_there_is_one(tmp_path):
    claim_early(tmp_path / "none", "--out")
    assert list(tmp_path.iterdir()) == []
    with run_in(tmp_path), pytest.raises(InputError, match=r"--out is .*, where another process runs"):
        claim_early(tmp_path, "--out")
    claim_early(tmp_path, "--out")
    taken = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert "where another process runs" in taken.stderr
