"""Progress of trials: on a terminal a table that disappears at the end, in a file one line per finished trial."""

import io
import math
from statistics import fmean

import pytest

from commands.console.terminals import Terminal
from condkd_ray.commands.console import live as module
from condkd_ray.commands.console import screen
from condkd_ray.commands.console.live import TERMINAL, Live, drawn_bar, table
from condkd_ray.core.task import Score
from condkd_ray.core.view import Best, Goal

LEAVES = {"inversion/bn_weight": 12.3456789, "guidance/name": "discriminator", "guidance/weight": 80.0}


@pytest.fixture(autouse=True)
def still(monkeypatch):
    monkeypatch.setattr(screen, "REDRAW_SECONDS", 3600)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("TERM", raising=False)


class Clock:
    """A clock that stands still, or advances by `step` at every reading."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Trials(Live):
    """Progress of trials without a screen; a round is reported with the value of the objective only, or without any."""

    def round(self, key, label, number, rounds, value=None):
        super().round(key, label, {"round": number} | ({} if value is None else {self.goal.metric: value}), rounds)

    def finished(self, key, label, status, **more):
        super().finished(key, label, status, None, **more)


def row(number: int, value: float = 0.5) -> dict[str, float]:
    return {"round": number, "proxy/agreement": value, "student/test_accuracy": 0.999}


def test_a_running_trial_shows_the_last_and_the_best_value_of_the_objective():
    progress = Trials(2)
    for number, value in ((1, 0.5), (2, None), (3, 0.75), (4, math.nan), (5, 0.625)):
        progress.round("a", "trial a", number, 12, value)
    trial = progress.running["a"]
    assert (trial.round, trial.rounds, trial.now, trial.best) == (5, 12, 0.625, 0.75)


@pytest.mark.parametrize(("larger", "best"), [(True, "b"), (False, "c")])
def test_the_best_value_is_over_the_finished_trials_of_all_drivers(larger, best):
    progress = Trials(9, Goal("metric", larger), best=Best("earlier", 0.5))
    ends = [("a", 0.4, "finished"), ("b", 0.6, "finished"), ("c", 0.3, "finished"), ("d", 0.9, "pruned")]
    for key, value, status in [*ends, ("e", 0.1, "failed"), ("f", 0.6, "finished")]:
        progress.round(key, key, 1, 1, value)
        progress.finished(key, key, status, leaves={"leaf": key})
    assert progress.best is not None
    assert (progress.best.label, progress.best.leaves) == (best, {"leaf": best})
    assert (progress.done, dict(progress.ended)) == (6, {"finished": 4, "pruned": 1, "failed": 1})


def test_means_per_arm_are_over_finished_trials():
    progress = Trials(9)
    for key, arm, value, status in [
        ("a", "mixed", 0.4, "finished"),
        ("b", "mixed", 0.6, "finished"),
        ("c", "mixed", 0.9, "failed"),
        ("d", "none", 0.25, "finished"),
    ]:
        progress.round(key, key, 1, 2, value)
        progress.finished(key, key, status, group=arm)
    progress.finished("e", "e", "finished", group="none")
    assert {arm: (len(v), fmean(v)) for arm, v in progress.groups.items()} == {"mixed": (2, 0.5), "none": (1, 0.25)}


def test_the_time_left_is_unknown_at_first_and_then_estimated(clock):
    progress = Trials(3)
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


def test_the_start_of_the_first_trials_is_not_counted_in_the_estimate(clock):
    progress = Trials(4)
    clock.now = 1000
    for key in "ab":
        progress.round(key, key, 1, 3)
    for number in (2, 3):
        clock.now += 10
        for key in "ab":
            progress.round(key, key, number, 3)
    # Two at once: a round every 5 s, and two trials of 3 rounds are left.
    assert progress.seconds_left() == pytest.approx(30)


def test_trials_of_one_round_give_an_estimate(clock):
    progress = Trials(4)
    for key in "ab":
        clock.now += 10
        progress.round(key, key, 1, 1)
        progress.finished(key, key, "finished")
    assert progress.seconds_left() == pytest.approx(20)


def test_a_resumed_trial_counts_only_its_new_rounds(clock):
    progress = Trials(1)
    for number in (7, 8):
        clock.now += 10
        progress.round("a", "a", number, 10)
    assert progress.seconds_left() == pytest.approx(20)
    progress.round("a", "a", 6, 10)
    assert progress.seconds_left() == pytest.approx(40)


def test_failed_trials_alone_give_no_estimate():
    progress = Trials(2)
    progress.finished("a", "a", "failed")
    assert progress.seconds_left() is None


def search(running: int = 2) -> Trials:
    module.monotonic.step = 10.0
    progress = Trials(24, Goal(decides=True), best=Best("trial 3", 0.9375, LEAVES))
    for number in range(running):
        for done, value in ((1, 0.5), (2, 0.75), (3, 0.7)):
            progress.round(str(number), f"trial {number + 4}", done, 12, value)
    progress.finished("x", "trial 1", "failed")
    progress.finished("y", "trial 2", "pruned")
    return progress


def ablation(running: int = 2) -> Trials:
    progress = Trials(80)
    for number, (arm, value) in enumerate([("none", 0.5), ("mixed ipc 5", 0.75), ("mixed ipc 5", 0.8)]):
        progress.round(f"done {number}", arm, 1, 1, value)
        progress.finished(f"done {number}", arm, "finished", group=arm)
    for number in range(running):
        progress.round(str(number), f"guided ipc 5 seed {number}", 1, 12, None)
    return progress


def test_a_search_shows_its_progress_the_best_value_and_running_trials():
    head, best, leaves, empty, *running = table(search(), 79, 23, fine=False)
    assert head.startswith("##-----------------  2/24 trials  1 failed  1 pruned  ")
    assert "left " in head
    assert best == "best: trial 3, proxy/agreement 0.9375"
    assert leaves == "  inversion/bn_weight 12.35  guidance/name discriminator  guidance/weight 80"
    assert empty == ""
    assert running == [
        "running  round  proxy/agreement    best",
        "trial 4   3/12           0.7000  0.7500",
        "trial 5   3/12           0.7000  0.7500",
    ]


def test_an_ablation_shows_the_mean_of_each_arm_and_no_best():
    shown = table(ablation(), 79, 23, fine=True)
    assert shown[0].startswith("━──────────────────  3/80 trials  ")
    assert shown[2:] == [
        "running              round  proxy/agreement  best",
        "guided ipc 5 seed 0   1/12                -     -",
        "guided ipc 5 seed 1   1/12                -     -",
        "",
        "finished     n  mean proxy/agreement",
        "none         1                0.5000",
        "mixed ipc 5  2                0.7750",
    ]


def test_trials_that_do_not_fit_on_the_screen_are_counted():
    shown = table(search(64), 79, 23, fine=True)
    assert len(shown) == 23
    assert sum(line.startswith("trial ") for line in shown) == 17
    assert shown[-1] == "and 47 more"
    every = table(search(64), 79, 80, fine=True)
    assert sum(line.startswith("trial ") for line in every) == 64


def test_arms_that_do_not_fit_are_left_out():
    assert not any("finished" in line for line in table(ablation(30), 79, 9, fine=True))
    shown = table(ablation(30), 79, 10, fine=True)
    assert [line[:8] for line in shown[2:]] == [
        "running ",
        "guided i",
        "guided i",
        "and 28 m",
        "",
        "finished",
        "none    ",
        "mixed ip",
    ]


@pytest.mark.parametrize("progress", [search, ablation, lambda: search(64), lambda: ablation(64), lambda: Trials(3)])
@pytest.mark.parametrize("columns", [1, 9, 19, 39, 79, 199])
@pytest.mark.parametrize("rows", [0, 1, 4, 9, 23, 49])
def test_the_table_fits_terminals_of_every_size(progress, columns, rows):
    shown = table(progress(), columns, rows, fine=True)
    assert len(shown) <= rows
    assert all(len(line) <= columns for line in shown)


def test_in_narrow_windows_the_objective_stays_and_labels_keep_both_ends():
    shown = table(ablation(), 39, 23, fine=True)
    assert "running          round  proxy/agreement" in shown
    assert "guided ..seed 1   1/12                -" in shown


def test_before_the_first_trial_a_line_states_that_none_runs():
    assert table(Trials(3), 79, 23, fine=True)[-1] == "waiting for the next round"


@pytest.mark.parametrize(("share", "text"), [(0, "----"), (0.5, "##--"), (1, "####"), (7, "####"), (-1, "----")])
def test_a_bar_has_the_length_of_its_share(share, text):
    assert drawn_bar(share, fine=False, width=4) == text


def test_a_file_gets_one_line_per_finished_trial(clock, screen_on):
    stream = io.StringIO()
    screen_on(stream)
    live = Live(12)
    for number in (1, 2):
        clock.now += 5
        live.round("a", "mixed seed 0", row(number), 2)
    live.finished("a", "mixed seed 0", "finished", 0.91234)
    live.finished("b", "guided seed 0", "failed", None)
    live.finished("c", "guided seed 1", "finished", float("nan"))
    live.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[ 1/12] mixed seed 0 test 91.23 %, left 1 min 50 s"
    assert lines[1].startswith("[ 2/12] guided seed 0 failed, 1 failed")
    assert lines[2].startswith("[ 3/12] guided seed 1 no accuracy")
    assert len(lines) == 3


def test_lines_of_a_segmentation_name_the_mean_iou(screen_on):
    stream = io.StringIO()
    screen_on(stream)
    live = Live(2, Goal(score=Score("segmentation")))
    live.finished("a", "mixed seed 0", "finished", 0.43211)
    live.finished("b", "mixed seed 1", "finished", None)
    assert [line.partition(",")[0] for line in stream.getvalue().splitlines()] == [
        "[1/2] mixed seed 0 test mean IoU 43.21 %",
        "[2/2] mixed seed 1 no mean IoU",
    ]


def test_lines_of_a_search_have_the_objective_and_never_test_accuracy(screen_on):
    stream = io.StringIO()
    screen_on(stream)
    live = Live(3, Goal(decides=True))
    for key, value in (("a", 0.5), ("b", 0.25)):
        live.round(key, f"trial {key}", row(1, value), 2)
        live.finished(key, f"trial {key}", "finished" if key == "a" else "pruned", 0.999)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("[1/3] trial a finished, proxy/agreement 0.5000")
    assert second.startswith("[2/3] trial b pruned, proxy/agreement 0.2500")
    assert second.endswith("; best so far trial a, 0.5000")
    assert "99" not in stream.getvalue()


def test_the_table_on_a_terminal_becomes_one_line_at_the_end(clock, screen_on):
    terminal = Terminal()
    screen = screen_on(terminal)
    live = Live(2, Goal(decides=True))
    live.round("a", "trial 0", row(1), 4)
    screen.draw()
    assert terminal.lines[-1] == "trial 0    1/4           0.5000  0.5000"
    live.finished("a", "trial 0", "finished", 0.999, leaves={"leaf": 0.123456})
    live.finished("b", "trial 1", "failed", None)
    screen.draw()
    assert terminal.lines[1:3] == ["best: trial 0, proxy/agreement 0.5000", "  leaf 0.1235"]
    clock.now = 75
    live.close()
    assert terminal.lines == ["2 of 2 trials, 1 failed in 1 min 15 s"]
    assert "99" not in "".join(terminal.writes)


def test_a_bar_shows_share_and_time_left_and_disappears_at_the_end(monkeypatch, clock, screen_on):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal(60)
    screen = screen_on(terminal)
    with TERMINAL.bar("teacher") as on_step:
        screen.draw()
        assert terminal.lines == ["teacher  0 s"]
        clock.now += 30
        on_step(1, 4)
        screen.draw()
        assert terminal.lines == ["teacher  ━━━━──────────   25%  30 s  left 1 min 30 s"]
        on_step(4, 4)
        screen.draw()
        assert terminal.lines == ["teacher  ━━━━━━━━━━━━━━  100%  30 s"]
    assert terminal.lines == [""]


def test_an_error_removes_the_bar(screen_on):
    terminal = Terminal(60)
    screen = screen_on(terminal)

    def interrupted() -> None:
        with TERMINAL.bar("teacher"):
            screen.draw()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.lines == [""]


def test_a_file_gets_no_bar(screen_on):
    stream = io.StringIO()
    screen_on(stream)
    with TERMINAL.bar("teacher") as on_step:
        on_step(1, 2)
    assert stream.getvalue() == ""
