"""What `condkd` answers at once, and that nothing heavy is imported for it."""

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
    """Exit code, heavy modules that were imported, standard output and standard error of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    *said, last = done.stdout.splitlines()
    code, imported = json.loads(last)
    return code, imported, "\n".join(said), done.stderr


def test_importing_the_package_imports_nothing():
    told = f"import sys, condkd_ray; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_all_verbs(tmp_path, flag):
    code, imported, said, _ = condkd(tmp_path, flag)
    assert (code, imported) == (0, [])
    assert all(f"  {verb} " in said for verb in VERBS)


def test_the_version(tmp_path):
    assert condkd(tmp_path, "--version") == (0, [], f"condkd {condkd_ray.__version__}", "")


@pytest.mark.parametrize(("verb", "hint"), [("serch", " (did you mean search?)"), ("zzz", ""), ("--verbose", "")])
def test_an_unknown_verb_is_refused(tmp_path, verb, hint):
    code, imported, said, told = condkd(tmp_path, verb, "--help")
    assert (code, imported, said) == (2, [], "")
    assert told == f"error: verb is '{verb}'{hint}; accepted: {', '.join(VERBS)}, --help, --version\n"


def test_without_a_verb_there_is_help_and_no_success(tmp_path):
    code, imported, said, told = condkd(tmp_path)
    assert (code, imported, said) == (2, [], "")
    assert told.startswith("usage: condkd")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_there_at_once(tmp_path, verb):
    for arguments in (["--help"], ["space.yaml", "-h"]):
        code, imported, said, _ = condkd(tmp_path, verb, *arguments)
        assert (code, imported) == (0, [])
        assert said.startswith(f"usage: condkd {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_that_is_stored_is_that_of_the_flags(verb):
    def words(text: str) -> list[str]:
        # Where lines are broken, and what is drawn around them, is tyro's affair; it hyphenates nothing.
        return re.findall(r"[\w./*$'=-]+", text)

    told = "python -m condkd_ray.commands.front writes it anew"
    assert words(stored_help(verb)) == words(render_help(verb)), told
    assert stored_help(verb).isascii()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_what_the_table_says(verb):
    flags, function = VERBS[verb].load()
    assert callable(function)
    # Of its docstring the table tells the first sentence, or what is most of it.
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
    folder = tmp_path / ("there" if any("there" in one for one in arguments) else f"runs/{arguments[0]}")
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        code, imported, said, told = condkd(tmp_path, *arguments)
    finally:
        os.close(held)
    assert (code, imported, said) == (2, [], "")
    assert told.startswith(f"error: --out is '{folder.relative_to(tmp_path)}', where another process runs; accepted: ")
    assert list(folder.iterdir()) == []


def test_a_report_in_the_way_is_told_of_and_ctrl_c_ends_the_wait(tmp_path):
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
def test_what_needs_no_folder_for_itself_is_not_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    held = os.open("there", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert exit_code_without_command(arguments) is None
    claim_out(VERBS[arguments[0]], arguments[1:])
    os.close(held)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


FLAG = re.compile(r" *(--[^\n]*?)(?: {2,}(?=\S)|\s*\n\s+)(\S[^\n]*)")
"""A flag with its values, and the first line of its text."""


@pytest.mark.parametrize("verb", VERBS)
def test_each_flag_has_a_text(verb):
    blocks = re.split(r"^(?= *--?\w)", stored_help(verb), flags=re.MULTILINE)[1:]
    found = [match.groups() for block in blocks if (match := FLAG.match(block))]
    assert [flag for flag, text in found if text.startswith("(default")] == []
