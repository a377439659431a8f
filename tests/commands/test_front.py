"""Help, versions and refusals of `condkd` that are printed without importing heavy packages."""

import fcntl
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import condkd_ray
from condkd_ray.commands.front import VERBS, claim_out, exit_code_without_command, render_help, stored_help

HEAVY = ("torch", "ray", "optuna", "numpy", "pyarrow", "pydantic", "matplotlib", "tyro")
CHILD = f"""
import json, sys
from condkd_ray.__main__ import main
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code, [name for name in {HEAVY} if name in sys.modules]]))
"""


def condkd(folder: Path, *arguments: str) -> tuple[int, list[str], str, str]:
    """Run `condkd` in a process; return exit code, imported heavy modules, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    *output, last = done.stdout.splitlines()
    code, imported = json.loads(last)
    return code, imported, "\n".join(output), done.stderr


def test_importing_the_package_imports_no_heavy_package():
    script = f"import sys, condkd_ray; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_all_verbs(tmp_path, flag):
    code, imported, output, _ = condkd(tmp_path, flag)
    assert (code, imported) == (0, [])
    assert all(f"  {verb} " in output for verb in VERBS)


def test_the_version_is_printed(tmp_path):
    assert condkd(tmp_path, "--version") == (0, [], f"condkd {condkd_ray.__version__}", "")


@pytest.mark.parametrize(("verb", "hint"), [("serch", " (did you mean search?)"), ("zzz", ""), ("--verbose", "")])
def test_an_unknown_verb_is_refused(tmp_path, verb, hint):
    code, imported, output, errors = condkd(tmp_path, verb, "--help")
    assert (code, imported, output) == (2, [], "")
    assert errors == f"error: verb is '{verb}'{hint}; accepted: {', '.join(VERBS)}, --help, --version\n"


def test_without_a_verb_help_is_printed_and_the_exit_code_is_2(tmp_path):
    code, imported, output, errors = condkd(tmp_path)
    assert (code, imported, output) == (2, [], "")
    assert errors.startswith("usage: condkd")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_printed_without_heavy_imports(tmp_path, verb):
    for arguments in (["--help"], ["space.yaml", "-h"]):
        code, imported, output, _ = condkd(tmp_path, verb, *arguments)
        assert (code, imported) == (0, [])
        assert output.startswith(f"usage: condkd {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_stored_help_is_up_to_date(verb):
    def words(text: str) -> list[str]:
        # Line breaks and frames differ between versions of tyro, which never hyphenates.
        return re.findall(r"[\w./*$'=-]+", text)

    advice = "python -m condkd_ray.commands.front writes it anew"
    assert words(stored_help(verb)) == words(render_help(verb)), advice
    assert stored_help(verb).isascii()


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_of_verbs_agrees_with_their_flags(verb):
    flags, function = VERBS[verb].load()
    assert callable(function)
    # The summary in the table is the first sentence of the docstring, or most of it.
    words = {word.lower() for word in re.findall(r"\w{4,}", VERBS[verb].summary)}
    known = {word.lower() for word in re.findall(r"\w{4,}", inspect.getdoc(flags) or "")}
    assert len(words & known) >= len(words) / 2
    if VERBS[verb].out is not None:
        assert str(flags.__dataclass_fields__["out"].default) == VERBS[verb].out


@pytest.mark.parametrize(
    "arguments",
    [
        *(("search", "space.yaml"), ("try",), ("train", "trial.yaml")),
        *(("search", "space.yaml", "--out", "there"), ("train", "x.yaml", "--rounds", "3", "--out=there", "--fresh")),
        ("train", "--from-record", "runs/a", "abc", "--out", "there"),
    ],
)
def test_a_folder_in_use_is_refused_before_anything_is_imported(tmp_path, arguments):
    folder = tmp_path / ("there" if any("there" in argument for argument in arguments) else f"runs/{arguments[0]}")
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        code, imported, output, errors = condkd(tmp_path, *arguments)
    finally:
        os.close(held)
    assert (code, imported, output) == (2, [], "")
    assert errors.startswith(
        f"error: --out is '{folder.relative_to(tmp_path)}', where another process runs; accepted: "
    )
    assert list(folder.iterdir()) == []


def test_a_running_report_is_waited_for_with_a_message_and_ctrl_c_ends_the_wait(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    command = [sys.executable, "-m", "condkd_ray", "train", "x.yaml", "--out", "there"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "waiting for a report on this folder to end\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    os.close(held)
    assert (process.returncode, rest) == (130, "interrupted; the same command continues\n")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("search", "space.yaml", "--out", "there", "--explain"), ("report", "there"), ("pool", "there")),
        *(("train", "x.yaml", "--out", "elsewhere"), ("train", "x.yaml", "--out", "there", "--out", "elsewhere")),
    ],
)
def test_a_call_that_needs_no_lock_may_name_a_folder_in_use(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    held = os.open("there", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert exit_code_without_command(arguments) is None
    claim_out(VERBS[arguments[0]], arguments[1:])
    os.close(held)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
