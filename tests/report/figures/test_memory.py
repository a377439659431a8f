"""The picture of the memories' content: it is drawn if a memory has samples, and shows the counts."""

import matplotlib
import pytest

from condkd_ray.report.figures import accuracy
from condkd_ray.report.figures.memory import held_figure
from condkd_ray.report.figures.style import STYLE, looks
from report.report_factory import LEVEL, altered, make_manifest, make_record, remembering, sweep

STYLES = looks(LEVEL)


def held(figure):
    """Return the (left, right) panels of each row, and all texts."""
    axes = figure.axes
    texts = [text.get_text() for text in figure.texts]
    texts += [text.get_text() for one in axes for text in [*one.texts, one.title, one._left_title, one._right_title]]
    return list(zip(axes[::2], axes[1::2], strict=True)), texts


def test_bars_are_mean_shares_over_seeds():
    one = altered(make_record("none", 0, 0), held={"class": [30, 10], "confidence": [0, 10, 10, 20]})
    other = altered(make_record("none", 0, 1), held={"class": [10, 10], "confidence": [0, 0, 0, 20]})
    ((left, right),), texts = held(held_figure([one, other], STYLES))
    assert [bar.get_height() for bar in left.patches] == pytest.approx([62.5, 37.5])
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0, 12.5, 12.5, 75])
    # In the first trial 25 % of the samples exceed equal class sizes, in the second none.
    assert "uneven: 12.5 %" in texts
    assert "mean 0.78" in texts
    assert any("n = 2 seeds; whiskers" in text for text in texts)


def test_each_arm_has_a_row_at_the_largest_ipc_in_the_same_scale():
    records = [remembering(record) for record in sweep(("none", "mixed", "guided"), (1, 10), (0, 1))]
    panels, texts = held(held_figure([*records, *sweep(("condensed_only",), (10,), (0,))], STYLES))
    assert len(panels) == 3
    for column in zip(*panels, strict=True):
        assert len({axes.get_ylim() for axes in column}) == 1
        assert all(bar.get_height() < axes.get_ylim()[1] for axes in column for bar in axes.patches)
    assert {"none (no condensed)", "mixed", "guided"} <= set(texts)
    assert any("at IPC 10" in text for text in texts)


def test_without_samples_in_a_memory_there_is_no_picture():
    assert held_figure(sweep(seeds=(0,)), STYLES) is None


def test_texts_of_many_classes_and_arms_fit_into_the_picture():
    many = [
        altered(make_record(f"prioritized 0.{i}", 0, 0), held={"class": [3] * 100, "confidence": [15] * 20})
        for i in range(14)
    ]
    with matplotlib.rc_context(STYLE):
        figure = held_figure(many, looks(record.arm for record in many))
    assert figure is not None
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height


def test_the_picture_is_written_with_the_others_and_equal_each_time(tmp_path):
    records = [remembering(record) for record in sweep(("none", "mixed"), (5,), (0, 1))]
    content = []
    for name in ("a", "b"):
        accuracy.save(tmp_path / name, accuracy.draw(records, make_manifest(records)))
        content.append((tmp_path / name / "histograms.png").read_bytes())
    assert content[0] == content[1]
    accuracy.save(tmp_path / "a", accuracy.draw(sweep(("none",), seeds=(0,)), make_manifest()))
    assert not (tmp_path / "a" / "histograms.png").exists()
