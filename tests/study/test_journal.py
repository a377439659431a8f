"""A journal stays usable after a killed process, a full disk or a power loss."""

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
from condkd_ray.study.objective import Objective
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.study.study import Study

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


@pytest.mark.parametrize("kind", ["ours", "optunas"])
def test_a_driver_killed_during_an_append_does_not_block_others(kind, soon, caplog):
    # With a relative path, Optuna's lock is a dangling link, for which Optuna waits forever.
    trial(1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, kind], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    assert os.path.lexists("study.journal.lock")
    trial(2)
    assert values() == [1, 2]
    assert not os.path.lexists("study.journal.lock")
    assert Path("study.journal.torn").read_bytes() == b'{"op_code":5,"wor\n'
    assert "study.journal.lock is removed: a killed process left it" in caplog.text
    assert "waiting for study.journal.lock" in caplog.text
    assert caplog.text.count("the last line of study.journal is incomplete") == 1


def test_a_stale_lock_does_not_block_an_open_journal(soon):
    open_one = study()
    os.symlink("nowhere", "study.journal.lock")
    open_one.add_trial(optuna.trial.create_trial(value=3.0))
    assert values() == [3]


def test_a_held_lock_is_waited_for(caplog):
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
    assert not lock.exists()
    assert "removed" not in caplog.text


def test_optunas_lock_waits_for_our_lock_and_takes_it_over_after_its_grace_period():
    PATH.touch()
    Lock(PATH).acquire()
    other = JournalFileSymlinkLock(str(PATH), grace_period=3)
    began = time.monotonic()
    other.acquire()
    assert 2.5 < time.monotonic() - began < 30
    other.release()


def test_releasing_a_lock_that_was_taken_over_does_not_free_it(soon):
    first, second = Lock(PATH), Lock(PATH)
    first.acquire()
    second.acquire()
    first.release()
    assert second.exists()
    second.release()
    assert not second.exists()


@pytest.mark.parametrize(
    "torn",
    [
        *(b"{", b'{"op_code":5,"worker_id":"a', b"\0" * 700, b'{"op_code":5,"wo' + b"\0" * 5000, b"\xff\xfe\x00"),
        *(b'{"op_code":5,"wor\n', b"\0" * 50 + b"\n", b'{"op_code":5,"wo{"op_code":4,"study_id":0}\n', b"[1]\n", b"\n"),
        b'{"op_code":5}',
    ],
)
def test_a_torn_end_is_moved_aside_and_the_study_continues(torn, caplog):
    trial(1)
    whole = PATH.read_bytes()
    PATH.write_bytes(whole + torn)
    trial(2)
    assert values() == [1, 2]
    assert PATH.read_bytes().startswith(whole + b'{"op_code":')
    assert all(json.loads(line) for line in PATH.read_bytes().splitlines())
    assert Path("study.journal.torn").read_bytes() == torn + b"\n"
    (record,) = (entry for entry in caplog.records if entry.name.startswith("condkd_ray"))
    assert record.message.startswith("the last line of study.journal is incomplete")
    assert "study.journal.torn" in record.message


def test_an_end_torn_while_the_journal_is_open_is_moved_aside_too():
    first = study()
    first.add_trial(optuna.trial.create_trial(value=1.0))
    with open(PATH, "ab") as file:
        file.write(b'{"op_code":8,"worker')
    first.add_trial(optuna.trial.create_trial(value=2.0))
    assert [trial.value for trial in first.trials] == values() == [1, 2]


@pytest.mark.parametrize("torn", [b'{"op_code":0,"wor', b"{", b"{" + b"\0" * 700, b"\0" * 700, b'{"op_co\0\0'])
def test_a_journal_whose_first_line_is_torn_begins_anew(torn):
    PATH.write_bytes(torn)
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


def test_a_line_written_in_part_to_a_full_disk_is_removed():
    trial(1)
    process = multiprocessing.get_context("fork").Process(target=_append_without_room)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert values() == [1, 3]
    assert not Path("study.journal.torn").exists()


@pytest.mark.parametrize("damage", [b'{"op_code":5,"wo{"op_code":4}\n', b"\0" * 30 + b"\n", b"\xff\n", b"3\n"])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_changed(damage):
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
    # The advice of the message works.
    PATH.write_bytes(b"".join(damaged.splitlines(keepends=True)[:2]))
    trial(2)
    assert values() == [1, 2]


NOTES = [b"my notes", b"my notes\n", b"\nnotes\n"]


@pytest.mark.parametrize("foreign", [*NOTES, b'{\n "a": 1\n}\n', b"SQLite format 3\0 and more", b"{}\n{}\n", b"[1, 2]"])
def test_a_file_that_is_no_journal_is_refused_and_not_changed(foreign):
    PATH.write_bytes(foreign)
    with pytest.raises(InputError, match=r"^line 1 of study\.journal is .*; accepted: the journal of a study$"):
        study()
    assert PATH.read_bytes() == foreign
    assert [path.name for path in Path().iterdir()] == ["study.journal"]


def test_a_journal_with_a_torn_end_in_a_read_only_folder_can_be_read(monkeypatch):
    trial(1)
    with open(PATH, "ab") as file:
        file.write(b"\xff\xfe\n")
    before = PATH.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [one.value for one in optuna.load_study(study_name="s", storage=open_storage(None, Path())).trials] == [1]
    assert PATH.read_bytes() == before


def test_an_intact_journal_can_be_used_by_optunas_backend():
    trial(1)
    found = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(JournalFileBackend(str(PATH))))
    found.add_trial(optuna.trial.create_trial(value=2.0))
    assert values() == [1, 2]
    assert next(Journal(PATH).read_logs(2))["op_code"] == 4
    assert sorted(path.name for path in Path().iterdir()) == ["study.journal"]


TREE = parse("{data: {name: digits}, inversion: {name: fast, bn_weight: !log_uniform [0.1, 100], steps: !int [2, 10]}}")


def search() -> Study:
    return Study(open_storage(None, Path()), "search", TREE, Objective(("proxy/agreement",)), sampler="random")


def searched(trials: int = 3) -> list[bytes]:
    """Return the lines of the journal of a search with `trials` complete trials and one that runs."""
    found = search()
    found.suggest_first([{"inversion/bn_weight": 2.0}])
    for number in range(trials):
        proposal = found.propose()
        found.report(proposal.number, 1, 0.5)
        found.complete(proposal.number, [number / 10])
    found.propose()
    return PATH.read_bytes().splitlines(keepends=True)


def test_a_search_continues_wherever_its_journal_is_cut(tmp_path):
    """A killed driver leaves such a journal; the cuts include the creation of the study."""
    lines = searched(2)
    for count in range(len(lines) + 1):
        for end in (b"", b'{"op_code":', b"{\0\0"):
            PATH.write_bytes(b"".join(lines[:count]) + end)
            found = search()
            for proposal in found.left_running():
                found.complete(proposal.number, [0.9])
            proposal = found.propose()
            found.complete(proposal.number, [0.7])
            assert search().trial(proposal.number).values == [0.7]


REPLACED = [
    (b'"trial_id":2', b'"trial_id":9', r"it refers to trial 9, which no earlier line creates"),
    (b'"study_id":0', b'"study_id":1', r"it refers to study 1, which no earlier line creates"),
    (b'"study_id":0', b'"study_id":-1', r"it refers to study -1, which no earlier line creates"),
    (b'"state":1', b'"state":99', r"ValueError: 99 is not a valid TrialState"),
    (b"FloatDistribution", b"FloatDistributiom", r"ValueError: "),
    (b'"directions":[2]', b'"directions":[7]', r"ValueError: 7 is not a valid StudyDirection"),
    (b'"datetime_start":"2', b'"datetime_start":"x2', r"ValueError: "),
]


@pytest.mark.parametrize(("old", "new", "reason"), REPLACED, ids=[new.decode() for _, new, _ in REPLACED])
def test_a_line_with_invalid_content_is_named(old, new, reason):
    lines = searched()
    number = next(i for i, line in enumerate(lines) if old in line)
    PATH.write_bytes(b"".join([*lines[:number], lines[number].replace(old, new, 1), *lines[number + 1 :]]))
    before = PATH.read_bytes()
    with pytest.raises(
        InputError, match=rf"^line {number + 1} of study\.journal is .*, which is damaged \({reason}.*head"
    ):
        search()
    assert PATH.read_bytes() == before


@pytest.mark.parametrize("name", [b'"op_code"', b'"worker_id"', b'"study_id"', b'"trial_id"', b'"values"', b'"step"'])
def test_a_line_without_a_required_field_is_damaged(name):
    lines = searched()
    number = max(i for i, line in enumerate(lines[:-1]) if name in line)
    damaged = lines[number].replace(name, name[:-1] + b'x"', 1)
    PATH.write_bytes(b"".join([*lines[:number], damaged, *lines[number + 1 :]]))
    with pytest.raises(InputError, match=rf"^line {number + 1} of study\.journal is .*, which is damaged; accepted: "):
        search()
    # At the end of the file, such a line counts as written in part.
    PATH.write_bytes(b"".join([*lines[:number], damaged]))
    search()
    assert Path("study.journal.torn").read_bytes() == damaged + b"\n"


def test_a_line_nested_too_deeply_for_json_is_damaged():
    lines = searched()
    PATH.write_bytes(b"".join([*lines[:4], b"[" * 200_000 + b"\n", *lines[4:]]))
    with pytest.raises(InputError, match=r"^line 5 of study\.journal is "):
        search()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (b'"param_name":"inversion/steps"', "parameters of trial 0 of study 'search' is 'without inversion/steps'"),
        (b'"system_attr":{"fixed_params"', ""),
        (b'"op_code":4', "refers to trial 0, which no earlier line creates"),
        (b'"user_attr":{"space"', "study 'search' was made for another space, "),
        (b'"user_attr":{"numbers"', "version of the numbers of study 'search' is 1"),
        (b'"user_attr":{"to_run"', ""),
        (b'"values":[', ""),
    ],
)
def test_a_missing_line_is_reported_unless_it_is_not_needed(kind, message):
    lines = searched()
    known = {str(sorted(trial.params.items())): trial.values for trial in search().ranked}
    PATH.write_bytes(b"".join(lines))
    number = next((i for i, line in enumerate(lines) if kind in line), len(lines) - 1)
    PATH.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
    if message:
        with pytest.raises(InputError, match=message):
            search()
        return
    assert {str(sorted(trial.params.items())): trial.values for trial in search().ranked}.items() <= known.items()
    search().propose()


def test_invalid_parameters_and_values_are_named():
    lines = searched()
    whole = b"".join(lines)
    for old, new, message in (
        (
            b'steps","param_value_internal":',
            b'steps","param_value_internal":9',
            "trial 0 of study 'search': inversion/st",
        ),
        (b'"values":[0.0]', b'"values":[]', "values of trial 0 of study 'search' is .*; accepted: a number for each"),
        (
            b'"directions":[2]',
            b'"directions":[1]',
            "direction of the objectives of study 'search' is 'minimize'; accepted: maximize",
        ),
    ):
        PATH.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            search()


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_journal_is_synced_to_disk_and_both_have_all_lines(tmp_path, monkeypatch, durable):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    storage = module.stored(tmp_path / "study.journal", durable=durable)
    study = optuna.create_study(study_name="s", storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert bool(synced) == durable
    assert len(optuna.load_study(study_name="s", storage=module.stored(tmp_path / "study.journal")).trials) == 1
