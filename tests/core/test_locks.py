"""Folders that a process has for itself; see also `tests/runs/test_output_folder.py`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from condkd_ray.core.locks import busy, claim, kept, let_go
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
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with kept(tmp_path) as alone:
        assert alone
        found = subprocess.run(command, capture_output=True, text=True)
        assert "where another process runs" in found.stderr
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def test_what_this_process_runs_in_is_its_own_before_and_after(tmp_path):
    taken = claim(tmp_path, "--out")
    with kept(tmp_path) as alone:
        assert alone
    assert not busy(tmp_path)
    found = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert "where another process runs" in found.stderr
    let_go(taken)


def test_where_there_is_no_folder_nobody_runs(tmp_path):
    assert not busy(tmp_path / "missing")
    with kept(tmp_path / "missing") as alone:
        assert alone
