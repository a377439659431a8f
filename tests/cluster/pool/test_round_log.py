import resource
import signal

import pytest

from condkd_ray.cluster.pool.round_log import LINES, NAME, LoggedRound, RoundLog
from condkd_ray.core.storage import Location, files, locate


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.ray)])
def place(request, tmp_path) -> Location:
    return tmp_path if request.param == "folder" else locate(request.getfixturevalue("bucket")) / "key"


def filled(place: Location, rounds: int) -> RoundLog:
    log = RoundLog(place, 0)
    for number in range(rounds):
        log.append(f"trial {number % 3}", 4, {"loss": float(number)} if number % 2 else None)
    return log


def test_rounds_are_read_back_in_order(place):
    log, count = filled(place, LINES + 7), LINES + 7
    again = RoundLog(place, 4 * count)
    assert again.rounds == log.rounds
    assert again.rounds[1] == LoggedRound("trial 1", 8, {"loss": 1.0})
    assert (again.num_ids, again.of_trial["trial 2"][:2]) == (4 * count, [2, 5])
    again.append("more", 3)
    assert RoundLog(place, 4 * count + 3).rounds == again.rounds


def test_a_trial_receives_the_rounds_since_its_last_one(tmp_path):
    log = RoundLog(tmp_path, 0)
    for trial, size in [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("c", 5), ("a", 6)]:
        log.append(trial, size)
    assert [log.received("a", round) for round in range(3)] == [[1], [2, 3], [4, 5, 6]]
    assert [log.received("b", round) for round in range(2)] == [[1, 2], [3, 4]]
    assert log.received("c", 0) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kept", [0, 5, LINES, LINES + 3])
def test_rounds_whose_samples_are_missing_are_removed_for_good(place, kept):
    filled(place, LINES + 7)
    assert len(RoundLog(place, 4 * kept + 1).rounds) == kept
    again = RoundLog(place, 10**6)
    assert len(again.rounds) == kept
    again.append("new", 4)
    assert [made.trial for made in RoundLog(place, 10**6).rounds][-1] == "new"
    assert len(RoundLog(place, 10**6).rounds) == kept + 1


@pytest.mark.parametrize(
    "torn", ['["trial 9", 24', '["trial 9", 24, null]', "\x00\x00\n", '{"trial": 1}\n', "[]\n", "3\n"]
)
def test_a_line_that_is_damaged_is_removed(tmp_path, torn):
    filled(tmp_path, 5)
    with open(tmp_path / NAME, "a", encoding="utf-8") as file:
        file.write(torn)
    log = RoundLog(tmp_path, 10**6)
    assert len(log.rounds) == 5
    log.append("new", 4)
    assert [made.trial for made in RoundLog(tmp_path, 10**6).rounds][-2:] == ["trial 1", "new"]


def test_a_round_costs_one_line(tmp_path):
    filled(tmp_path, 400)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    RoundLog(tmp_path, 10**6).append("trial", 4)
    after = path.stat()
    # The file is the same one, and longer by the line.
    assert after.st_ino == before.st_ino
    assert after.st_size - before.st_size < 40


@pytest.mark.ray
def test_a_round_in_a_bucket_replaces_one_small_file(bucket):
    place = locate(bucket) / "key"
    filled(place, LINES)
    names = {path.name for path in files(place)}
    RoundLog(place, 10**6).append("trial", 4)
    assert {path.name for path in files(place)} - names == {f"{NAME}.000001"}


def test_a_round_that_cannot_be_written_is_not_added(tmp_path):
    log = filled(tmp_path, 3)
    path, limits = tmp_path / NAME, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match=NAME):
            log.append("trial", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(log.rounds) == 3
    log.append("later", 4)
    assert [made.trial for made in RoundLog(tmp_path, 10**6).rounds] == ["trial 0", "trial 1", "trial 2", "later"]
