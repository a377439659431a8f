"""Figures over the rounds."""

import numpy as np
import pytest
from matplotlib.text import Text

from condkd_ray.report.figures.rounds import curves_figure, diagnosis_figure
from condkd_ray.report.figures.style import arm_styles
from condkd_ray.report.statistics import ACCURACY
from report.report_factory import LEVEL, altered, diagnosed, make_record, sweep

STYLES = arm_styles(LEVEL)


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def curves(figure) -> dict[str, tuple[list[float], list[float]]]:
    """Rounds and values of each curve of the first panel, by arm."""
    lines = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_a_curve_is_the_mean_over_seeds_at_the_largest_ipc_in_percent():
    records = sweep(("none", "mixed", "guided"), (1, 10), (0, 1))
    figure = curves_figure(records, STYLES)
    found = curves(figure)
    assert list(found) == ["none", "mixed", "guided"]
    for arm, ipc in (("none", 0), ("guided", 10)):
        trials = [record.history for record in records if (record.arm, record.ipc) == (arm, ipc)]
        wanted = np.mean([[100 * row[ACCURACY] for row in rows] for rows in trials], 0)
        assert found[arm] == ([1, 2, 3, 4], pytest.approx(wanted))
    for text in ("Measured during training at IPC 10.", "n = 2 seeds; bands", "none (no condensed)"):
        assert text in texts(figure)
    assert "round (measured on all 400 test images)" in texts(figure)


def test_only_rounds_that_all_seeds_measured_are_drawn():
    first, second = sweep(("mixed",), (10,), (0, 1))
    history = [row | ({ACCURACY: np.nan} if row["round"] == 2 else {}) for row in second.history]
    found = curves(curves_figure([first, altered(second, history=history)], STYLES))
    assert found["mixed"][0] == [1, 3, 4]


@pytest.mark.parametrize(("arms", "bands"), [(6, 6), (7, 0)])
def test_bands_are_drawn_for_few_arms_only(arms, bands):
    records = [make_record(f"arm {i}", 10, seed) for i in range(arms) for seed in (0, 1)]
    figure = curves_figure(records, arm_styles(record.arm for record in records))
    assert len(figure.axes[0].collections) == bands
    assert ("bands: ±1 standard deviation" in texts(figure)) == bool(bands)


def test_without_measured_rounds_there_are_no_curves():
    assert curves_figure([make_record("mixed", 10, 0, history=[])], STYLES) is None
    assert curves_figure([], STYLES) is None


def test_the_diagnosis_has_a_panel_for_each_measure_at_the_largest_ipc():
    records = [diagnosed(one) for one in sweep(("none", "mixed", "guided"), (1, 10), (0, 1))]
    figure = diagnosis_figure(records, STYLES)
    assert len(figure.axes) == 6
    first = figure.axes[0]
    (guided,) = [line for line in first.get_lines() if line.get_label() == "guided"]
    trials = [r for r in records if (r.arm, r.ipc) == ("guided", 10)]
    wanted = np.mean([[row["diagnosis/frechet_real"] for row in r.history] for r in trials], 0)
    assert guided.get_ydata() == pytest.approx(wanted)
    assert "none (no condensed)" in texts(figure)
    assert "at IPC 10; for the report only" in texts(figure)


def test_the_diagnosis_without_condensed_images_has_only_the_real_side_and_without_records_no_picture():
    records = [diagnosed(make_record(arm, 0, seed)) for arm in ("none", "real") for seed in (0, 1)]
    assert len(diagnosis_figure(records, STYLES).axes) == 3
    assert diagnosis_figure(sweep(seeds=(0,)), STYLES) is None
