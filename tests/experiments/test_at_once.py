"""Scripts print help and refuse unknown flags and used folders before they import PyTorch, Ray or Optuna."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import DOCS, EXPERIMENTS
from thinned import thinned

from condkd_ray.commands.experiment import Flags, command_line
from condkd_ray.core.method import InputError

HEAVY = ("torch", "torchvision", "ray", "optuna", "numpy", "scipy", "sklearn", "pyarrow", "matplotlib", "jinja2")
BLOCKS = f"""
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY}:
            if "INTERRUPTED" in os.environ:
                raise KeyboardInterrupt
            sys.stderr.write(name + " is imported")
            sys.stderr.flush()
            os._exit(99)

sys.meta_path.insert(0, Finder())
"""
_BLOCKS = (DOCS / "extending.md").read_text(encoding="utf-8").split("```python\n")[1:]
(OWN_ABLATION,) = (block.split("```")[0] for block in _BLOCKS if "command_line(" in block)
OWN_SEARCH = '''
from dataclasses import dataclass
from pathlib import Path

from condkd_ray.commands.experiment import Plan, command_line
from condkd_ray.commands.search import SearchFlags, confirm, run
from condkd_ray.core.method import InputError, require


@dataclass(frozen=True, kw_only=True)
class Args(SearchFlags):
    """Flags of this search."""

    capacities: tuple[int, ...] = ()
    out: Path = Path("runs/mine")


if __name__ == "__main__":
    command_line(Args, lambda args: run("mine", {}, args))
'''
OWN_SCRIPTS = {"own ablation": OWN_ABLATION, "own search": OWN_SEARCH}
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "command_line(" in path.read_text())
OWN_FLAGS = ("benchmark_cluster", "benchmark_peers", "simulate_cluster", "soak")
"""Scripts without the flags of an experiment."""
ALL = [*SCRIPTS, *OWN_SCRIPTS]
TYPICAL = ("ablate_ipc", "search_guidance", "soak", *OWN_SCRIPTS)
"""Scripts of each kind; the others go the same way once they print help before heavy imports."""
WITH_FOLDER = [name for name in ALL if name not in (*OWN_FLAGS, "equal_seconds")]


def output(folder: Path, name: str, *flags: str) -> tuple[int, str, str]:
    """Run a script; return its exit code, standard output and standard error.

    If it imports one of `HEAVY`, the exit code is 99 and the error names the package.
    """
    (folder / "blocks").mkdir()
    (folder / "blocks" / "sitecustomize.py").write_text(BLOCKS, encoding="utf-8")
    path = EXPERIMENTS / f"{name}.py"
    if name in OWN_SCRIPTS:
        path = folder / "own.py"
        path.write_text(OWN_SCRIPTS[name], encoding="utf-8")
    paths = os.pathsep.join([str(folder / "blocks"), str(EXPERIMENTS.parent)])
    plain = os.environ | {"PYTHONPATH": paths, "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, str(path), *flags]
    done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ALL)
def test_help_is_printed_before_heavy_imports(tmp_path, name):
    code, out, errors = output(tmp_path, name, "--help")
    assert (code, errors) == (0, "")
    assert out.startswith("usage: ")
    assert ("--capacities [INT" in out) == (name in OWN_SCRIPTS)
    assert ("--gpus-per-trial FLOAT" in out) == (name not in OWN_FLAGS)


@pytest.mark.parametrize("name", thinned(ALL, TYPICAL.__contains__))
def test_an_unknown_flag_is_refused_before_heavy_imports(tmp_path, name):
    code, out, errors = output(tmp_path, name, "--wibble", "3")
    assert (code, out) == (2, "")
    assert "--wibble" in errors


@pytest.mark.parametrize("name", thinned([name for name in ALL if name not in OWN_FLAGS], TYPICAL.__contains__))
def test_a_value_that_is_no_number_is_refused_before_heavy_imports(tmp_path, name):
    code, out, errors = output(tmp_path, name, "--gpus-per-trial", "many")
    assert (code, out) == (2, "")
    assert "--gpus-per-trial" in errors
    assert "many" in errors


@pytest.mark.parametrize("name", thinned(WITH_FOLDER, TYPICAL.__contains__))
def test_a_folder_in_use_is_refused_before_heavy_imports(tmp_path, name):
    folder = tmp_path / "there"
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        code, out, errors = output(tmp_path, name, "--out", "there")
    finally:
        os.close(held)
    assert (code, out) == (2, "")
    accepted = "another folder, or this one once that has ended"
    assert errors == f"error: --out is 'there', where another process runs; accepted: {accepted}\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags"), [("ablate_ipc", ["--explain"]), ("search_guidance", ["--explain"]), ("equal_seconds", [])]
)
def test_a_call_that_writes_nothing_may_name_a_folder_in_use(tmp_path, name, flags):
    (tmp_path / "there").mkdir()
    held = os.open(tmp_path / "there", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        code, _, errors = output(tmp_path, name, "--out", "there", *flags)
    finally:
        os.close(held)
    assert (code, errors) == (99, "torch is imported")


def test_ctrl_c_while_pytorch_is_imported_prints_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERRUPTED", "1")
    assert output(tmp_path, "ablate_ipc") == (130, "", "interrupted; the same command continues\n")


def test_the_folder_is_locked_before_anything_is_planned(tmp_path, monkeypatch):
    def main(flags: Flags) -> int:
        other = os.open(flags.out, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        raise InputError("so far")

    monkeypatch.setattr(sys, "argv", ["script", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command_line(Flags, main)
    assert ended.value.code == 2
