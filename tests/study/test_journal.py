"""A journal goes on whatever a killed process, a full disk or a power loss has left of it."""

import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from condkd_ray.core.method import InputError
from condkd_ray.core.storage import no_room
from condkd_ray.study import journal as module
from condkd_ray.study.journal import Journal, Lock
from condkd_ray.study.storage import open_storage

PATH = Path("study.journal")
HOLDER = """
import sys, time
from pathlib import Path
from condkd_ray.study.journal import Journal
from optuna.storages.journal import JournalFileBackend

journal = {"ours": Journal, "optunas": lambda path: JournalFileBackend(str(path))}[sys.argv[1]](Path("study.journal"))
journal._lock.acquire()
with open("study.journal", "ab", buffering=0) as file:
    file.write(b'{"op_code":5,"wor')
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "condkd_ray")


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.3)
    monkeypatch.setattr(module, "PATIENCE", 0.1)


def study() -> optuna.Study:
    return optuna.create_study(
        study_name="s", storage=open_storage(None, Path()), direction="maximize", load_if_exists=True
    )


def trial(number: int) -> None:
    study().add_trial(optuna.trial.create_trial(value=float(number)))


def values() -> list[float]:
    return [one.value for one in study().trials]


@pytest.mark.parametrize("whose", ["ours", "optunas"])
def test_a_driver_killed_in_the_middle_of_an_append_stops_no_other(whose, soon, caplog):
    # Under a relative path Optuna's lock is a link to nothing, and its own wait for it never ends.
    trial(1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, whose], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    assert os.path.lexists("study.journal.lock")
    trial(2)
    assert values() == [1, 2]
    assert not os.path.lexists("study.journal.lock")
    assert Path("study.journal.torn").read_bytes() == b'{"op_code":5,"wor\n'
    assert "study.journal.lock is removed: a process that was killed has left it" in caplog.text
    assert "waiting for study.journal.lock" in caplog.text
    assert caplog.text.count("the last line of study.journal was written in part") == 1


def test_a_lock_that_is_left_there_does_not_stop_a_journal_that_is_open(soon):
    open_one = study()
    os.symlink("nowhere", "study.journal.lock")
    open_one.add_trial(optuna.trial.create_trial(value=3.0))
    assert values() == [3]


def test_a_lock_that_is_held_is_waited_for(caplog):
    lock, other = Lock(PATH), JournalFileSymlinkLock(str(PATH.absolute()))
    PATH.touch()
    other.acquire()
    release = multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(0.4), other.release()))
    began = time.monotonic()
    release.start()
    lock.acquire()
    assert time.monotonic() - began > 0.3
    release.join()
    lock.release()
    assert not lock.stands()
    assert "removed" not in caplog.text


def test_optunas_own_lock_waits_for_ours_and_takes_over_what_we_have_left():
    PATH.touch()
    Lock(PATH).acquire()
    other = JournalFileSymlinkLock(str(PATH), grace_period=3)
    began = time.monotonic()
    other.acquire()
    assert 2.5 < time.monotonic() - began < 30
    other.release()


def test_what_others_have_taken_over_is_not_given_back(soon):
    first, second = Lock(PATH), Lock(PATH)
    first.acquire()
    second.acquire()
    first.release()
    assert second.stands()
    second.release()
    assert not second.stands()


@pytest.mark.parametrize(
    "torn",
    [
        *(b"{", b'{"op_code":5,"worker_id":"a', b"\0" * 700, b'{"op_code":5,"wo' + b"\0" * 5000, b"\xff\xfe\x00"),
        *(b'{"op_code":5,"wor\n', b"\0" * 50 + b"\n", b'{"op_code":5,"wo{"op_code":4,"study_id":0}\n', b"[1]\n", b"\n"),
        b'{"op_code":5}',
    ],
)
def test_a_torn_end_is_set_aside_and_the_study_goes_on(torn, caplog):
    trial(1)
    whole = PATH.read_bytes()
    PATH.write_bytes(whole + torn)
    trial(2)
    assert values() == [1, 2]
    assert PATH.read_bytes().startswith(whole + b'{"op_code":')
    assert all(json.loads(line) for line in PATH.read_bytes().splitlines())
    assert Path("study.journal.torn").read_bytes() == torn + b"\n"
    (record,) = (one for one in caplog.records if one.name.startswith("condkd_ray"))
    assert record.message.startswith("the last line of study.journal was written in part")
    assert "study.journal.torn" in record.message


def test_an_end_that_is_torn_while_the_journal_is_open_is_set_aside_too():
    first = study()
    first.add_trial(optuna.trial.create_trial(value=1.0))
    with open(PATH, "ab") as file:
        file.write(b'{"op_code":8,"worker')
    first.add_trial(optuna.trial.create_trial(value=2.0))
    assert [one.value for one in first.trials] == values() == [1, 2]


def test_a_journal_whose_first_line_is_torn_begins_anew():
    PATH.write_bytes(b'{"op_code":0,"wor')
    trial(1)
    assert values() == [1]


def _append_without_room() -> None:
    found = study()
    resource.setrlimit(resource.RLIMIT_FSIZE, (PATH.stat().st_size + 30, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = PATH.read_bytes()
    with pytest.raises(OSError, match=r"File too large.*study\.journal") as caught:
        found.add_trial(optuna.trial.create_trial(value=2.0))
    assert no_room(caught.value) == "study.journal: File too large"
    assert PATH.read_bytes() == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found.add_trial(optuna.trial.create_trial(value=3.0))
    assert [one.value for one in found.trials] == [1, 3]


def test_what_a_full_disk_has_taken_of_a_line_is_taken_back():
    trial(1)
    process = multiprocessing.get_context("fork").Process(target=_append_without_room)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert values() == [1, 3]
    assert not Path("study.journal.torn").exists()


@pytest.mark.parametrize("damage", [b'{"op_code":5,"wo{"op_code":4}\n', b"\0" * 30 + b"\n", b"\xff\n", b"3\n"])
def test_a_damaged_line_in_the_middle_is_named_and_all_is_left(damage):
    trial(1)
    trial(2)
    whole = PATH.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = b"".join([*lines[:2], damage, *lines[2:]])
    for content in (damaged, damaged + b'{"op'):
        PATH.write_bytes(content)
        with pytest.raises(
            InputError, match=r"^line 3 of study\.journal is .*, which is damaged; accepted: .*head -n 2"
        ):
            study()
        assert PATH.read_bytes() == content
        assert not os.path.lexists("study.journal.lock")
    # What is said there helps.
    PATH.write_bytes(b"".join(damaged.splitlines(keepends=True)[:2]))
    trial(2)
    assert values() == [1, 2]


NOTES = [b"my notes", b"my notes\n", b"\nnotes\n"]


@pytest.mark.parametrize("foreign", [*NOTES, b'{\n "a": 1\n}\n', b"SQLite format 3\0 and more", b"{}\n{}\n", b"[1, 2]"])
def test_what_is_no_journal_is_refused_and_left(foreign):
    PATH.write_bytes(foreign)
    with pytest.raises(InputError, match=r"^line 1 of study\.journal is .*; accepted: the journal of a study$"):
        study()
    assert PATH.read_bytes() == foreign
    assert [path.name for path in Path().iterdir()] == ["study.journal"]


def test_an_end_that_cannot_be_set_aside_does_not_keep_from_reading(monkeypatch):
    trial(1)
    with open(PATH, "ab") as file:
        file.write(b"\xff\xfe\n")
    before = PATH.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [one.value for one in optuna.load_study(study_name="s", storage=open_storage(None, Path())).trials] == [1]
    assert PATH.read_bytes() == before


def test_a_whole_journal_is_as_optuna_writes_it():
    trial(1)
    found = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(JournalFileBackend(str(PATH))))
    found.add_trial(optuna.trial.create_trial(value=2.0))
    assert values() == [1, 2]
    assert next(Journal(PATH).read_logs(2))["op_code"] == 4
    assert sorted(path.name for path in Path().iterdir()) == ["study.journal"]
