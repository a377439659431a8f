"""The looks, panels, labels and files that all figures share."""

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condkd_ray.report.figures import style
from condkd_ray.report.figures.style import STYLE, Label, arm_styles, over_seeds, separated
from report.report_factory import LEVEL, make_record, sweep

STYLES = arm_styles(LEVEL)


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(st.floats(-1, 2), min_size=1, max_size=9))
def test_labels_are_placed_apart_and_in_order(wanted):
    placed = separated(wanted, 0.05, 0.2, 0.9)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(np.asarray(placed)[order]) >= 0.05 - 1e-9).all()
    assert min(placed) >= 0.2 - 1e-9
    assert max(placed) <= 0.9 + 1e-9


def test_labels_with_room_stay_where_they_are():
    assert separated([0.5, 0.3, 0.7], 0.05, 0.2, 0.9) == pytest.approx([0.5, 0.3, 0.7])
    assert separated([0.5, 0.5], 0.1, 0.2, 0.9) == pytest.approx([0.45, 0.55])
    assert separated([], 0.1, 0, 1) == []


def test_standard_arms_keep_their_own_colours_beside_other_arms():
    assert len({color for color, _ in STYLES.values()}) == len(LEVEL)
    others = arm_styles([*LEVEL, "another", "a third"])
    assert {arm: others[arm] for arm in LEVEL} == STYLES


@pytest.mark.parametrize("named", [(), ("none", "mixed"), tuple(LEVEL)])
def test_arms_of_any_names_have_distinct_colours_and_beyond_them_distinct_markers(named):
    few = arm_styles([*named, *(f"form {i}" for i in range(9))])
    assert len({color for color, _ in few.values()}) == len(few)
    many = arm_styles([*named, *(f"form {i}" for i in range(25))])
    assert len(set(many.values())) == len(many)


def test_a_single_value_has_no_deviation():
    assert style.deviation(np.array([0.5])) == 0
    assert style.deviation(np.array([1.0, 3.0])) == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("counts", "given", "text"),
    [
        ({1}, {}, "One seed (n = 1), so no spread is known."),
        ({3}, {}, "Means over n = 3 seeds; bars and bands: ±1 standard deviation."),
        ({2, 3, 5}, {"spread": ""}, "Means over n = 2 to 5 seeds."),
        ({1, 2}, {"points": " (points)", "spread": "bars"},
         "Means over n = 1 to 2 seeds (points); bars: ±1 standard deviation."),
    ],
)  # fmt: skip
def test_the_caption_states_the_number_of_seeds_and_the_spread(counts, given, text):
    assert over_seeds(counts, **given) == text


def test_at_an_ipc_arms_without_condensed_images_stand_beside_those_of_that_ipc():
    records = sweep(("none", "mixed", "guided"), (1, 10), (0, 1))
    found = style.at_ipc(records, 10)
    assert {arm: {record.ipc for record in members} for arm, members in found.items()} == {
        "none": {0},
        "mixed": {10},
        "guided": {10},
    }
    assert style.largest_ipc(records) == (10, " at IPC 10")
    assert style.largest_ipc([make_record("none", 0, 0)]) == style.largest_ipc([]) == (0, "")


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_tiles_are_three_in_a_row_and_the_lowest_name_the_axis(count, rows):
    figure, panels = style.tiles(count, foot=1.0)
    assert len(panels) == len(figure.axes) == count
    assert figure.get_size_inches().tolist() == pytest.approx([style.WIDE, 1.65 * rows + 1.0])
    assert [panel.get_xlabel() for panel in panels] == [""] * (count - min(count, 3)) + ["round"] * min(count, 3)


def test_rows_have_the_first_label_on_top():
    _, axes = style.rows(["first", "second", "third"])
    low, high = axes.get_ylim()
    assert low > high
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second", "third"]


def test_labels_are_connected_to_their_points_in_a_figure_widened_for_them():
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = style.canvas(3.0)
        width = figure.get_figwidth()
        axes.plot([0, 1], [0, 1])
        labels = [Label(axes, 1.0, 0.5, "a label of many words, far longer than the space beside", "#000000")]
        style.finished(figure, "The caption.", [*labels, Label(axes, 1.0, 0.5, "another", "#D55E00")])
    assert figure.get_figwidth() > width
    texts = [text.get_text() for text in figure.texts]
    assert texts == [labels[0].text, "another", "The caption."]
    point = figure.transFigure.inverted().transform(axes.transData.transform((1.0, 0.5)))
    for line in figure.artists + figure.lines:
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx(tuple(point))
    first, second = (text.get_position()[1] for text in figure.texts[:2])
    assert abs(first - second) * figure.get_figheight() >= 0.165 - 1e-9


def drawn_figure():
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = style.canvas(2.0)
        axes.plot([0, 1], [0, 1])
        return style.finished(figure, "The caption.")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_file_has_the_format_of_its_suffix_and_no_date(tmp_path, suffix, start):
    path = tmp_path / f"figure.{suffix}"
    style.save(path, drawn_figure())
    written = path.read_bytes()
    assert written.startswith(start)
    assert b"<dc:date>" not in written
    style.save(path, drawn_figure())
    assert path.read_bytes() == written
    style.save(path, None)
    style.save(path, None)
    assert not path.exists()
