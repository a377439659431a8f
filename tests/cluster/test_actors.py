from types import SimpleNamespace

import pytest

from condkd_ray.cluster import actors
from condkd_ray.cluster.actors import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock that the stopwatch reads; `now` is its time in seconds."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(actors, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_a_trial_counts_its_waiting_time_and_the_time_since_the_last_trial(clock):
    watch = Stopwatch()
    with watch.running():
        clock.now += 8
    with watch.trial():
        assert watch.seconds == 0
        with watch.running():
            clock.now += 1
        clock.now += 2
        with watch.running():
            clock.now += 4
        assert watch.seconds == 5
    clock.now += 16
    with watch.trial():
        assert watch.seconds == 16


def test_time_counts_and_a_trial_ends_if_an_error_is_raised(clock):
    def failing() -> None:
        clock.now += 1
        raise OSError

    watch = Stopwatch()
    with pytest.raises(OSError), watch.trial(), watch.running():
        failing()
    assert watch.seconds == 1
    clock.now += 2
    with watch.trial():
        assert watch.seconds == 2
