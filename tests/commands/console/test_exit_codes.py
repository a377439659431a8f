import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

from condkd_ray.commands.console.exit_codes import exit_code_of, exit_codes, log_line, log_to_stderr
from condkd_ray.core.environment import SMALLER
from condkd_ray.core.method import ClusterError, InputError, NonFiniteError
from condkd_ray.runs.options import RunResult
from condkd_ray.study.storage import open_storage


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("steps is 0; accepted: an integer >= 1"), 2, "error: steps is 0; accepted: an integer >= 1\n"),
        (NonFiniteError("loss term teacher/loss is not finite"), 1, "failed: loss term teacher/loss is not finite\n"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory."),
            1,
            f"failed: out of GPU memory: CUDA out of memory.; accepted: {SMALLER}\n",
        ),
        (
            OSError(28, "", "out/record"),
            1,
            "failed: out/record: No space left on device; the same command continues once there is room\n",
        ),
        (ClusterError("Ray does not come up"), 1, "failed: Ray does not come up; the same command tries again\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
    ],
)
def test_each_ending_has_its_exit_code_and_one_message(capsys, error, code, words):
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr() == ("", words)


def test_a_library_without_memory_gives_the_same_message(capsys):
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("failed: out of GPU memory: cuDNN error: CUDNN_STATUS_ALLOC_FAILED; acc")


def test_a_locked_or_broken_data_base_gives_one_line(capsys, tmp_path):
    place = tmp_path / "study.db"
    storage = open_storage(f"sqlite:///{place}?timeout=0.1", tmp_path)
    with sqlite3.connect(place, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SystemExit) as caught, exit_codes():
            optuna.create_study(storage=storage)
    other.close()
    assert caught.value.code == 1
    message = (
        "failed: the study's database cannot be used: (sqlite3.OperationalError) database is locked; the same command"
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith(message.replace("(sqlite3.OperationalError) ", ""))
    storage.remove_session()
    storage.engine.dispose()
    place.write_bytes(place.read_bytes()[:4096] + b"\xff" * 50_000)
    with pytest.raises(SystemExit) as caught, exit_codes():
        optuna.create_study(storage=open_storage(f"sqlite:///{place}", tmp_path))
    assert caught.value.code in (1, 2)
    output = capsys.readouterr().err
    assert "malformed" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("mistake", [ZeroDivisionError(), RuntimeError("CUDA error: misaligned address")])
def test_errors_of_this_package_keep_their_traceback(mistake):
    with pytest.raises(type(mistake)) as caught, exit_codes():
        raise mistake
    assert caught.value is mistake


def test_log_lines_go_to_standard_error(capsys):
    log_to_stderr()
    log_line("training")
    assert capsys.readouterr() == ("", "training\n")


def test_details_are_logged_only_on_request(capsys):
    log = logging.getLogger("condkd_ray.any")
    log_to_stderr()
    log.debug("one")
    log_to_stderr(True)
    try:
        log.debug("two")
    finally:
        log_to_stderr(False)
    log.debug("three")
    assert capsys.readouterr().err == "two\n"


@pytest.mark.parametrize(("stream", "word"), [("stdout", "show"), ("stderr", "log_line")])
def test_a_closed_pipe_does_not_end_a_program(tmp_path, stream, word):
    code = f"""
from pathlib import Path
from condkd_ray.commands.console.exit_codes import show, log_to_stderr, log_line
log_to_stderr()
for _ in range(3):
    {word}("x" * 70000)
Path("end").write_text("went on")
"""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **{stream: writer}) as process:
        os.close(writer)
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "went on"


def test_a_closed_terminal_does_not_end_a_program(tmp_path):
    code = """
import sys
from pathlib import Path
from condkd_ray.commands.console.exit_codes import show
sys.stdin.readline()
show("x")
show("y")
Path("end").write_text("reached")
"""
    master, slave = os.openpty()
    run = {"cwd": tmp_path, "stdin": subprocess.PIPE, "stdout": slave, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", code], **run) as process:
        os.close(slave)
        os.close(master)
        process.communicate(b"\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "reached"


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
NO_ROOM = "failed: standard output: No space left on device; the same command continues once there is room\n"


@FULL
@pytest.mark.parametrize("write", ['show("x")', 'show("x" * 70_000, end="")', 'print("by a library")'])
def test_a_result_that_standard_output_has_no_room_for_is_an_error(write):
    code = f"""
from condkd_ray.commands.console.exit_codes import exit_codes, show
with exit_codes():
    {write}
"""
    with open("/dev/full", "w", encoding="utf-8") as full:
        found = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr) == (1, NO_ROOM)


@FULL
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_a_command_fails_if_standard_output_is_full_and_stays_quiet_if_it_is_closed(arguments):
    command = [sys.executable, "-m", "condkd_ray", *arguments]
    with open("/dev/full", "w", encoding="utf-8") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr) == (1, NO_ROOM)
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        ((True, 0, ("time",)), 0, ""),
        ((True, 2), 1, ""),
        ((False, 0), 130, "interrupted; the same command continues\n"),
        ((False, 1, ("GPU",)), 3, "the GPU budget is spent; the same command continues\n"),
    ],
)
def test_the_end_of_a_run_has_its_exit_code_and_message(run, code, message, capsys):
    log_to_stderr()
    assert exit_code_of(RunResult(Path("out"), *run)) == code
    assert capsys.readouterr().err == message
