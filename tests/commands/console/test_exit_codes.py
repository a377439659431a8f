import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from condkd_ray.commands.console.exit_codes import CpuClock, ended, exit_codes, open_folder, say, speak
from condkd_ray.core.method import InputError, NonFiniteError


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("steps is 0; accepted: an integer >= 1"), 2, "error: steps is 0; accepted: an integer >= 1\n"),
        (NonFiniteError("loss term teacher/loss is not finite"), 1, "failed: loss term teacher/loss is not finite\n"),
        (
            OSError(28, "", "out/record"),
            1,
            "failed: out/record: No space left on device; the same command continues once there is room\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
    ],
)
def test_each_ending_has_its_exit_code_and_one_message(capsys, error, code, words):
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr() == ("", words)


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError


def test_words_go_to_standard_error(capsys):
    speak()
    say("training")
    assert capsys.readouterr() == ("", "training\n")


def test_details_are_heard_only_by_who_wants_them(capsys):
    log = logging.getLogger("condkd_ray.any")
    speak()
    log.debug("one")
    speak(True)
    try:
        log.debug("two")
    finally:
        speak(False)
    log.debug("three")
    assert capsys.readouterr().err == "two\n"


@pytest.mark.parametrize(("stream", "word"), [("stdout", "show"), ("stderr", "say")])
def test_a_closed_pipe_ends_nothing(tmp_path, stream, word):
    code = f"""
from pathlib import Path
from condkd_ray.commands.console.exit_codes import show, speak, say
speak()
for _ in range(3):
    {word}("x" * 70000)
Path("heard").write_text("went on")
"""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **{stream: writer}) as process:
        os.close(writer)
    assert process.returncode == 0
    assert (tmp_path / "heard").read_text() == "went on"


def write_manifest(out, experiment="train", format=1):
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"experiment": experiment, "question": "", "command": "", "created": "", "format": format}
    (out / "experiment.json").write_text(json.dumps(manifest))


def test_a_new_folder_is_made_and_an_own_one_left_as_it_is(tmp_path):
    open_folder(tmp_path / "a" / "b", "train", fresh=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    write_manifest(tmp_path / "own")
    open_folder(tmp_path / "own", "train", fresh=False)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["experiment.json"]


def test_fresh_moves_aside_what_was_there_each_time(tmp_path, capsys):
    for content in ("first", "second"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / "result").write_text(content)
        open_folder(tmp_path / "runs", "train", fresh=True)
        assert list((tmp_path / "runs").iterdir()) == []
    kept = sorted((path / "result").read_text() for path in tmp_path.glob("runs.*"))
    assert kept == ["first", "second"]
    assert capsys.readouterr().err.count("moved ") == 2


def test_fresh_without_anything_there_is_a_new_folder(tmp_path, capsys):
    open_folder(tmp_path / "runs", "train", fresh=True)
    assert capsys.readouterr().err == ""


def test_fresh_of_the_working_folder_moves_it(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result").touch()
    monkeypatch.chdir(tmp_path / "runs")
    open_folder(Path("."), "train", fresh=True)
    assert [path.name for path in tmp_path.glob("runs.*/*")] == ["result"]


def test_a_folder_that_cannot_be_moved_is_refused():
    with pytest.raises(InputError, match=r"--out is '/proc'; accepted with --fresh: a folder to move"):
        open_folder(Path("/proc"), "train", fresh=True)


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
    hold = "import time; from pathlib import Path; from condkd_ray.commands.console.exit_codes import open_folder\n"
    hold += f"open_folder(Path({str(tmp_path)!r}), 'train', fresh=False); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=r"--out is '.*', where another process runs; accepted: a folder of its"):
            open_folder(tmp_path, "train", fresh=fresh)
        other.kill()
    assert tmp_path.is_dir()
    open_folder(tmp_path, "train", fresh=fresh)
    open_folder(tmp_path, "train", fresh=False)


def test_cpu_seconds_grow_with_work():
    clock = CpuClock()
    before = clock.look()
    while clock.look() - before < 0.01:
        sum(range(1000))


def test_cpu_seconds_of_a_process_that_was_killed_stay():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"
    clock = CpuClock()
    before = clock.look()
    child = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, text=True)
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        assert child.stdout is not None
        child.stdout.readline()
        seen = clock.look() - before
    # The kernel counts in hundredths of a second.
    assert seen >= 0.28
    assert clock.look() - before >= seen


@pytest.mark.parametrize(
    ("run", "code", "told"),
    [
        ((True, 0, ["time"]), 0, ""),
        ((True, 2, []), 1, ""),
        ((False, 0, []), 130, "interrupted; the same command continues\n"),
        ((False, 1, ["GPU"]), 3, "the GPU budget is spent; the same command continues\n"),
    ],
)
def test_how_a_run_has_ended(run, code, told, capsys):
    assert ended(*run) == code
    assert capsys.readouterr().err == told
