"""Figures are written, deterministic and complete, and their labels do not overlap."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.accuracy import dots_figure
from condkd_ray.report.figures.rounds import diagnosis_figure
from condkd_ray.report.figures.style import STYLE, arm_styles
from condkd_ray.report.statistics import ACCURACY
from report.report_factory import LEVEL, altered, diagnosed, make_manifest, make_record, sweep

FILES = ("figure.png", "figure.svg", "curves.png", "diagnosis.png")
STYLES = arm_styles(LEVEL)


def far_below(records):
    """Return the trials with a fifth of their accuracy, and the references unchanged."""
    return [
        r if r.arm == "real" else altered(r, metrics=r.metrics | {ACCURACY: r.metrics[ACCURACY] / 5}) for r in records
    ]


def test_files_are_written_and_equal_each_time(tmp_path, monkeypatch):
    # Drawing with pyplot would change global state, so its import fails here.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    records = [diagnosed(record) for record in sweep(seeds=(0, 1, 2))]
    content = []
    for name in ("a", "b"):
        accuracy.save(tmp_path / name, accuracy.draw(records, make_manifest(records)))
        content.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert content[0] == content[1]
    with Image.open(tmp_path / "a" / "figure.png") as picture:
        assert picture.size == (1100, 700)
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_svg_names_arms_references_and_n(tmp_path):
    records = sweep(seeds=(0, 1, 2))
    accuracy.save(tmp_path, accuracy.draw(records, make_manifest(records)))
    svg = (tmp_path / "figure.svg").read_text()
    arms = ["guided", "mixed", "condensed_only", "guided_only", "none (no condensed)"]
    references = ["teacher, 97.2", "KD on real data, 9"]
    for text in [*arms, *references, "n = 3 seeds", "condensed images per class (IPC)", "test accuracy (%)"]:
        assert text in svg
    assert "broken" not in svg


def test_far_references_are_drawn_beyond_a_marked_break(tmp_path):
    records = far_below(sweep())
    accuracy.save(tmp_path, accuracy.draw(records, make_manifest(records)))
    svg = (tmp_path / "figure.svg").read_text()
    assert "The vertical axis is broken; its parts differ in scale." in svg
    assert "teacher, 97.2" in svg


def test_every_point_lies_within_the_limits():
    for records in (sweep(), far_below(sweep())):
        bounds = [panel.get_ylim() for panel in accuracy.draw(records, make_manifest())["figure"].axes]
        values = [100 * record.metrics[ACCURACY] for record in records if record.ipc]
        assert all(bounds[-1][0] < value < bounds[-1][1] for value in values)
        of_arms = {arm: [100 * r.metrics[ACCURACY] for r in records if r.arm == arm] for arm in ("none", "real")}
        for level in (*map(np.mean, of_arms.values()), 100 * make_manifest().teacher["test_accuracy"]):
            assert any(low < level < high for low, high in bounds)


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
        [make_record("guided", 0, 0), make_record("guided", 5, 0)],
        [diagnosed(one) for one in sweep(("none", "guided"), (5,), (0, 1))],
        [diagnosed(make_record("guided", 5, 0)), make_record("mixed", 5, 0)],
        [diagnosed(make_record(f"arm {i}", 5, 0)) for i in range(30)],
        [make_record("guided", 5, 0, history=[])],
        [make_record("guided", 5, s, metrics={ACCURACY: 0.5}) for s in (0, 1)],
    ],
)
def test_any_part_of_a_sweep_can_be_drawn(tmp_path, records):
    for teacher in ({}, {"test_accuracy": 0.99}):
        accuracy.save(tmp_path, accuracy.draw(records, make_manifest(records, teacher=teacher)))
        assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("ipcs", [(1, 5), (1, 5, 10), (1, 1000)])
@pytest.mark.parametrize("arms", [1, 5, 12, 60])
def test_all_of_many_arms_lie_within_the_axis(arms, ipcs):
    records = [make_record(f"arm {i}", ipc, seed) for i in range(arms) for ipc in ipcs for seed in (0, 1)]
    figure = accuracy.draw(records, make_manifest(records))["figure"]
    axes = figure.axes[-1]  # the other panel, if any, has references alone
    (left, right), (first, last) = axes.get_xlim(), axes.dataLim.intervalx
    assert left < first < last < right
    assert first <= ipcs[0]
    assert last >= ipcs[-1]


def test_labels_of_any_length_fit_into_the_picture():
    def drawn(name):
        records = [make_record(name, ipc, seed) for ipc in (1, 5) for seed in (0, 1)]
        return accuracy.draw(records, make_manifest(records))["figure"]

    short, long = drawn("mixed"), drawn("guided by the class means of four sets, no class head")
    assert short.get_figwidth() < long.get_figwidth()
    for figure in (short, long):
        ends = [text.get_window_extent().x1 for text in figure.texts if text.get_text()]
        assert max(ends) <= figure.get_figwidth() * figure.dpi
    # The panels are as wide as before.
    inches = [figure.axes[0].get_position().width * figure.get_figwidth() for figure in (short, long)]
    assert inches[0] == pytest.approx(inches[1])


def test_a_single_seed_is_stated(tmp_path):
    records = sweep(seeds=(0,))
    accuracy.save(tmp_path, accuracy.draw(records, make_manifest(records)))
    assert "One seed (n = 1), so no spread is known." in (tmp_path / "figure.svg").read_text()


def test_the_range_of_seed_counts_is_stated(tmp_path):
    records = [make_record("guided", 1, s) for s in range(4)] + [make_record("guided", 5, s) for s in range(2)]
    accuracy.save(tmp_path, accuracy.draw(records, make_manifest(records)))
    assert "n = 2 to 4 seeds" in (tmp_path / "figure.svg").read_text()


def test_without_finished_trials_old_pictures_are_deleted(tmp_path):
    accuracy.save(tmp_path, accuracy.draw(sweep(seeds=(0,)), make_manifest()))
    accuracy.save(tmp_path, accuracy.draw([make_record(status="failed")], make_manifest()))
    assert list(tmp_path.iterdir()) == []


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_with_one_ipc_the_figure_has_a_row_for_each_arm_and_the_baseline_as_a_line():
    records = sweep(("none", "mixed", "guided"), (10,), (0, 1, 2))
    figure = dots_figure(records, make_manifest(baseline="mixed"), STYLES)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none (no condensed)", "mixed", "guided"]
    means = {arm: np.mean([100 * r.metrics[ACCURACY] for r in records if r.arm == arm]) for arm in ("mixed", "guided")}
    (line,) = [one for one in axes.get_lines() if one.get_linestyle() == "--"]
    assert line.get_xdata() == pytest.approx([means["mixed"]] * 2)
    drawn = [value for one in axes.get_lines() for value in one.get_xdata()]
    assert all(any(value == pytest.approx(100 * r.metrics[ACCURACY]) for value in drawn) for r in records)
    low, high = axes.get_xlim()
    assert all(low < 100 * r.metrics[ACCURACY] < high for r in records)
    for text in (f"{means['guided']:.1f} ± ", "at IPC 10", "Dashed: mixed.", "Teacher: 97.2 %.", "n = 3 seeds"):
        assert text in texts(figure)


def test_far_real_data_are_stated_as_text_and_do_not_widen_the_axis():
    records = far_below(sweep(ipcs=(10,)))
    (axes,) = dots_figure(records, make_manifest(), STYLES).axes
    assert axes.get_xlim()[1] < 30
    assert "KD on real data" in texts(axes)
    assert f"{np.mean([100 * r.metrics[ACCURACY] for r in records if r.arm == 'real']):.1f} ± " in texts(axes)


def test_the_kind_of_figure_depends_on_the_number_of_planned_ipcs(tmp_path):
    planned = sweep(ipcs=(1, 10), seeds=(0,))
    done = [record for record in planned if record.ipc != 10]
    for manifest, is_dots in ((make_manifest(done), True), (make_manifest(planned), False)):
        accuracy.save(tmp_path, accuracy.draw(done, manifest))
        assert ("condensed images per class (IPC)" in (tmp_path / "figure.svg").read_text()) is not is_dots


def boxes(figure):
    """Return the boxes of all texts without numeric ticks, some of which matplotlib has but does not draw."""
    parts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        parts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        parts += [label for label in axes.get_yticklabels() if any(map(str.isalpha, label.get_text()))]
    renderer = figure.canvas.get_renderer()
    return [part.get_window_extent(renderer) for part in parts if part.get_text()]


@pytest.mark.parametrize("word", ["mmd", "unconditional", "mixed distribution_matching"])
@pytest.mark.parametrize("count", [1, 5, 14])
def test_no_text_is_cut(count, word):
    records = [diagnosed(make_record(f"{word} x0.{i:02d}", 10, s)) for i in range(count) for s in (0, 1)]
    styles = arm_styles(record.arm for record in records)
    with matplotlib.rc_context(STYLE):
        for figure in (dots_figure(records, make_manifest(), styles), diagnosis_figure(records, styles)):
            figure.canvas.draw()
            width, height = figure.canvas.get_width_height()
            for box in boxes(figure):
                assert -1 <= box.x0 < box.x1 <= width + 1
                assert -1 <= box.y0 < box.y1 <= height + 1


def test_of_many_arms_the_first_are_drawn_and_the_baseline_with_them(monkeypatch):
    monkeypatch.setattr(accuracy, "MOST_ARMS", 3)
    records = [make_record(f"arm {number}", 5, seed) for number in range(5) for seed in (0, 1)]
    whole = make_manifest(records, baseline="arm 4")
    figure = accuracy.draw(records, whole)["figure"]
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"arm 0", "arm 1", "arm 4", "2 more arms are in the tables"} <= texts
    assert not {"arm 2", "arm 3"} & texts
    few = accuracy.draw(records[:6], whole)["figure"]
    assert not any("more arms" in text.get_text() for text in few.findobj(Text))
