"""Figures: there, deterministic, complete and with labels that do not touch."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_factory import make_manifest, make_record, sweep

from condkd_ray.report import figures
from condkd_ray.report.drawing import keep_apart, look
from condkd_ray.report.statistics import ACCURACY

FILES = ("figure.png", "figure.svg", "curves.png")


def far_below(records):
    """The same trials at a fifth of their accuracy, the references left where they are."""
    return [
        r if r.arm == "real" else dataclasses.replace(r, metrics=r.metrics | {ACCURACY: r.metrics[ACCURACY] / 5})
        for r in records
    ]


def test_files_are_there_and_equal_each_time(tmp_path, monkeypatch):
    # Whoever draws with pyplot changes global state; here its import fails.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    records = sweep(seeds=(0, 1, 2))
    content = []
    for name in ("a", "b"):
        figures.write(tmp_path / name, records, make_manifest(records))
        content.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert content[0] == content[1]
    with Image.open(tmp_path / "a" / "figure.png") as picture:
        assert picture.size == (1100, 700)
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_svg_names_arms_references_and_n(tmp_path):
    records = sweep(seeds=(0, 1, 2))
    figures.write(tmp_path, records, make_manifest(records))
    svg = (tmp_path / "figure.svg").read_text()
    arms = ["guided", "mixed", "condensed_only", "guided_only", "none (no condensed)"]
    references = ["teacher, 97.2", "KD on real data, 9"]
    for text in [*arms, *references, "n = 3 seeds", "condensed images per class (IPC)", "test accuracy (%)"]:
        assert text in svg
    assert "broken" not in svg


def test_far_references_stand_beyond_a_marked_break(tmp_path):
    records = far_below(sweep())
    figures.write(tmp_path, records, make_manifest(records))
    svg = (tmp_path / "figure.svg").read_text()
    assert "The vertical axis is broken; its parts differ in scale." in svg
    assert "teacher, 97.2" in svg


def test_every_point_lies_within_the_limits():
    for records in (sweep(), far_below(sweep())):
        levels, curves = figures._levels(records, make_manifest()), figures._curves(records)
        bounds = figures._limits(levels, curves)
        values = [value for curve in curves for seeds in curve.points for value in seeds]
        assert all(bounds[-1][0] < value < bounds[-1][1] for value in values)
        for level in levels:
            assert any(low < level.mean < high for low, high in bounds)


@pytest.mark.parametrize(
    "records",
    [
        sweep(ipcs=(10,), seeds=(0,)),
        sweep(("none",), seeds=(0, 1)),
        sweep(("none", "real")),
        sweep(("guided",), (1, 10), (0, 1)),
        [make_record("guided", 1, 0), make_record("guided", 1, 1), make_record("guided", 5, 0)],
        [make_record("guided", 1, 0), make_record("mixed", 1, 0, status="failed", metrics={}, history=[])],
        [make_record("shared pool", 5, 0), make_record("other", 5, 0)],
        [make_record("guided", 5, 0, history=[])],
        [make_record("guided", 5, s, metrics={ACCURACY: 0.5}) for s in (0, 1)],
    ],
)
def test_any_part_of_a_sweep_can_be_drawn(tmp_path, records):
    for teacher in ({}, {"test_accuracy": 0.99}):
        figures.write(tmp_path, records, make_manifest(records, teacher=teacher))
        assert (tmp_path / "figure.png").stat().st_size > 5000


def test_one_seed_says_so(tmp_path):
    records = sweep(seeds=(0,))
    figures.write(tmp_path, records, make_manifest(records))
    assert "One seed (n = 1), so no spread is known." in (tmp_path / "figure.svg").read_text()


def test_uneven_seeds_say_so(tmp_path):
    records = [make_record("guided", 1, s) for s in range(4)] + [make_record("guided", 5, s) for s in range(2)]
    figures.write(tmp_path, records, make_manifest(records))
    assert "n = 2 to 4 seeds" in (tmp_path / "figure.svg").read_text()


def test_no_trial_no_picture_not_even_an_old_one(tmp_path):
    figures.write(tmp_path, sweep(seeds=(0,)), make_manifest())
    figures.write(tmp_path, [make_record(status="failed")], make_manifest())
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(st.floats(-1, 2), min_size=1, max_size=9))
def test_labels_keep_apart_in_order(wanted):
    placed = keep_apart(wanted, 0.05, 0.2, 0.9)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(np.asarray(placed)[order]) >= 0.05 - 1e-9).all()
    assert min(placed) >= 0.2 - 1e-9
    assert max(placed) <= 0.9 + 1e-9


def test_labels_with_room_stay_where_they_are():
    assert keep_apart([0.5, 0.3, 0.7], 0.05, 0.2, 0.9) == pytest.approx([0.5, 0.3, 0.7])
    assert keep_apart([0.5, 0.5], 0.1, 0.2, 0.9) == pytest.approx([0.45, 0.55])
    assert keep_apart([], 0.1, 0, 1) == []


def test_every_standard_arm_has_a_look_of_its_own():
    arms = ("none", "condensed_only", "mixed", "guided", "guided_only", "real")
    assert len({look(arm)[0] for arm in arms}) == len(arms)
    assert look("something else") == look("something else")
