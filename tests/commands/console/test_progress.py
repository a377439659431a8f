"""How far an experiment has come: counts, the best so far, the time left."""

import math

import pytest

from condkd_ray.commands.console.progress import Progress
from condkd_ray.core.view import Best, Goal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_running_trial_shows_its_goal_as_last_measured_and_at_its_best():
    progress = Progress(2)
    for number, value in ((1, 0.5), (2, None), (3, 0.75), (4, math.nan), (5, 0.625)):
        progress.round("a", "trial a", number, 12, value)
    trial = progress.running["a"]
    assert (trial.round, trial.rounds, trial.now, trial.best) == (5, 12, 0.625, 0.75)


@pytest.mark.parametrize(("larger", "best"), [(True, "b"), (False, "c")])
def test_the_best_is_that_of_the_goal_among_finished_trials_of_all_drivers(larger, best):
    progress = Progress(9, Goal("metric", larger), best=Best("earlier", 0.5))
    ends = [("a", 0.4, "finished"), ("b", 0.6, "finished"), ("c", 0.3, "finished"), ("d", 0.9, "pruned")]
    for key, value, status in [*ends, ("e", 0.1, "failed"), ("f", 0.6, "finished")]:
        progress.round(key, key, 1, 1, value)
        progress.finished(key, key, status, leaves={"leaf": key})
    assert progress.best is not None
    assert (progress.best.label, progress.best.leaves) == (best, {"leaf": best})
    assert (progress.done, dict(progress.ended)) == (6, {"finished": 4, "pruned": 1, "failed": 1})


def test_means_are_of_finished_trials_by_arm():
    progress = Progress(9)
    for key, arm, value, status in [
        ("a", "mixed", 0.4, "finished"),
        ("b", "mixed", 0.6, "finished"),
        ("c", "mixed", 0.9, "failed"),
        ("d", "none", 0.25, "finished"),
    ]:
        progress.round(key, key, 1, 2, value)
        progress.finished(key, key, status, group=arm)
    progress.finished("e", "e", "finished", group="none")
    assert progress.means() == {"mixed": (2, 0.5), "none": (1, 0.25)}


def test_time_left_is_unknown_at_first_and_then_right():
    clock = Clock()
    progress = Progress(3, clock=clock)
    assert progress.seconds_left() is None
    for number in range(1, 5):
        clock.now += 10
        progress.round("a", "a", number, 4)
        expected = None if number == 1 else (4 - number + 8) * 10
        assert progress.seconds_left() == expected
    progress.finished("a", "a", "finished")
    assert progress.seconds_left() == 80
    progress.finished("b", "b", "failed")
    progress.finished("c", "c", "failed")
    assert progress.seconds_left() == 0


def test_how_long_the_first_trials_take_to_start_is_not_counted():
    clock = Clock()
    progress = Progress(4, clock=clock)
    clock.now = 1000
    for key in "ab":
        progress.round(key, key, 1, 3)
    for number in (2, 3):
        clock.now += 10
        for key in "ab":
            progress.round(key, key, number, 3)
    # Two at once: a round every 5 s, and two trials of 3 rounds are left.
    assert progress.seconds_left() == pytest.approx(30)


def test_trials_of_one_round_give_an_estimate_too():
    clock = Clock()
    progress = Progress(4, clock=clock)
    for key in "ab":
        clock.now += 10
        progress.round(key, key, 1, 1)
        progress.finished(key, key, "finished")
    assert progress.seconds_left() == pytest.approx(20)


def test_a_resumed_trial_counts_only_the_rounds_seen():
    clock = Clock()
    progress = Progress(1, clock=clock)
    for number in (7, 8):
        clock.now += 10
        progress.round("a", "a", number, 10)
    assert progress.seconds_left() == pytest.approx(20)
    progress.round("a", "a", 6, 10)
    assert progress.seconds_left() == pytest.approx(40)


def test_failures_alone_give_no_estimate():
    progress = Progress(2, clock=Clock())
    progress.finished("a", "a", "failed")
    assert progress.seconds_left() is None
