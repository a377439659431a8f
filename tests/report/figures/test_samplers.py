"""Best-so-far curves of searches, and the areas between them."""

import numpy as np
import pytest

from condkd_ray.core.records import write_record
from condkd_ray.report.figures import samplers
from condkd_ray.report.figures.samplers import area, chosen, curve, in_order, samplers_table
from condkd_ray.study.objective import Objective
from report.report_factory import make_record

NAME = "proxy/agreement"


def trials(*values, status="finished"):
    tested = [{NAME: value, "student/test_accuracy": 1 - value} for value in values]
    return [make_record(arm=f"trial {i}", metrics=metrics, status=status) for i, metrics in enumerate(tested)]


def test_a_curve_is_monotonic_and_ignores_failed_trials():
    failed = trials(0.9, status="failed")
    assert curve([*trials(0.3, 0.2, 0.5), *failed, *trials(0.4)], NAME, "maximize").tolist() == [
        0.3,
        0.3,
        0.5,
        0.5,
        0.5,
    ]
    assert curve(trials(0.3, 0.2, 0.5), NAME, "minimize").tolist() == [0.3, 0.2, 0.2]


def test_the_chosen_trial_is_the_best_by_the_objective():
    assert chosen([*trials(0.9, status="failed"), *trials(0.2, 0.5)], NAME, "maximize") == 0.5
    assert chosen(trials(0.2, 0.5), NAME, "minimize") == 0.8


def test_trials_are_sorted_by_their_numbers():
    records = trials(*np.linspace(0, 1, 12))
    assert in_order(sorted(records, key=lambda record: record.arm)) == records


def test_the_shared_start_is_left_out_of_the_area():
    left, right = np.array([[9, 9, 3.0, 5.0], [9, 9, 2.0, 2.0]]), np.array([[0, 0, 1.0, 1.0], [0, 0, 2.0, 2.0]])
    assert area(left, right, 2).tolist() == [3.0, 0.0]


def test_the_table_is_correct_and_the_picture_is_written(tmp_path):
    curves = {"random": np.array([[0.1, 0.2], [0.1, 0.3]]), "tpe": np.array([[0.1, 0.4], [0.1, 0.6]])}
    tested = {"random": np.array([0.5, 0.7]), "tpe": np.array([0.6, 0.9])}
    random, tpe = samplers_table(curves, tested, "random", 1, NAME).rows
    assert random == ["random", "2", "0.25 ± 0.071", "", "60 ± 14", ""]
    # 0.2 and 0.3 have the mean 0.25 and the standard error 0.05; t at one degree of freedom is 12.7.
    assert tpe[3] == "+0.25 (-0.385 to +0.885, paired t, df 1)"
    assert tpe[5].startswith("+15 (")
    samplers.draw(tmp_path / "samplers.png", curves, 1, NAME)
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_interval():
    curves = {"random": np.array([[0.1, 0.2]]), "tpe": np.array([[0.1, 0.4]])}
    rows = samplers_table(curves, {name: np.array([0.5]) for name in curves}, "random", 1, NAME).rows
    assert rows[1][3] == "+0.2 (no interval, n = 1)"
    assert pytest.approx(0.2) == area(curves["tpe"], curves["random"], 1)[0]


def test_each_seed_has_its_own_curve(tmp_path):
    seeds = [tmp_path / "0", tmp_path / "1"]
    folders = {name: [[out / "first", out / name] for out in seeds] for name in ("a", "b")}
    for seed in (0, 1):
        for place, value in (("first", 0.1), ("a", 0.2), ("b", 0.3 + 0.2 * seed)):
            metrics = {NAME: value, "student/test_accuracy": value}
            write_record(seeds[seed] / place, make_record(arm="trial 0", metrics=metrics, config_hash=place))
    samplers.compare(tmp_path, folders, 1, Objective((NAME,)))
    *_, row = (line for line in (tmp_path / "samplers.md").read_text().splitlines() if line.startswith("| b"))
    assert row.split(" | ")[2:4] == ["0.4 ± 0.14", "+0.2 (-1.07 to +1.47, paired t, df 1)"]
