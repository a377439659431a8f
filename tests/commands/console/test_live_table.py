"""What the live table says, and that it fits."""

import pytest

from condkd_ray.commands.console.live_table import drawn_bar, lines
from condkd_ray.commands.console.progress import Progress
from condkd_ray.core.view import Best, Goal

LEAVES = {"inversion/bn_weight": 12.3456789, "guidance/name": "discriminator", "guidance/weight": 80.0}


def search(running: int = 2) -> Progress:
    clock = iter(range(0, 100_000, 10))
    progress = Progress(24, Goal(decides=True), best=Best("trial 3", 0.9375, LEAVES), clock=lambda: next(clock))
    for number in range(running):
        for done, value in ((1, 0.5), (2, 0.75), (3, 0.7)):
            progress.round(str(number), f"trial {number + 4}", done, 12, value)
    progress.finished("x", "trial 1", "failed")
    progress.finished("y", "trial 2", "pruned")
    return progress


def ablation(running: int = 2) -> Progress:
    progress = Progress(80, clock=lambda: 0.0)
    for number, (arm, value) in enumerate([("none", 0.5), ("mixed ipc 5", 0.75), ("mixed ipc 5", 0.8)]):
        progress.round(f"done {number}", arm, 1, 1, value)
        progress.finished(f"done {number}", arm, "finished", group=arm)
    for number in range(running):
        progress.round(str(number), f"guided ipc 5 seed {number}", 1, 12, None)
    return progress


def test_a_search_shows_the_whole_the_best_and_what_runs():
    head, best, leaves, empty, *running = lines(search(), 79, 23, fine=False)
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
    shown = lines(ablation(), 79, 23, fine=True)
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


def test_of_many_trials_those_that_fit_are_shown_and_the_others_counted():
    shown = lines(search(64), 79, 23, fine=True)
    assert len(shown) == 23
    assert sum(line.startswith("trial ") for line in shown) == 17
    assert shown[-1] == "and 47 more"
    every = lines(search(64), 79, 80, fine=True)
    assert sum(line.startswith("trial ") for line in every) == 64


def test_arms_are_left_out_where_they_do_not_fit():
    assert not any("finished" in line for line in lines(ablation(30), 79, 9, fine=True))
    shown = lines(ablation(30), 79, 10, fine=True)
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


@pytest.mark.parametrize("progress", [search, ablation, lambda: search(64), lambda: ablation(64), lambda: Progress(3)])
@pytest.mark.parametrize("columns", [1, 9, 19, 39, 79, 199])
@pytest.mark.parametrize("rows", [0, 1, 4, 9, 23, 49])
def test_it_fits_everywhere(progress, columns, rows):
    shown = lines(progress(), columns, rows, fine=True)
    assert len(shown) <= rows
    assert all(len(line) <= columns for line in shown)


def test_in_narrow_windows_the_objective_stays_and_labels_keep_both_ends():
    shown = lines(ablation(), 39, 23, fine=True)
    assert "running          round  proxy/agreement" in shown
    assert "guided ..seed 1   1/12                -" in shown


def test_before_anything_runs_it_says_so():
    assert lines(Progress(3), 79, 23, fine=True)[-1] == "waiting for the next round"


@pytest.mark.parametrize(("share", "text"), [(0, "----"), (0.5, "##--"), (1, "####"), (7, "####"), (-1, "----")])
def test_bars(share, text):
    assert drawn_bar(share, fine=False, width=4) == text
