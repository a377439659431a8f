"""The form of tables and of the numbers in their cells."""

import math

import pytest

from condkd_ray.report.statistics import ACCURACY, Difference, Spread
from condkd_ray.report.tables.table import (
    WIDTH,
    Table,
    arm_cells,
    comparison_cells,
    count,
    interval_text,
    mean_of,
    mean_text,
    p_text,
    signed,
)
from report.report_factory import make_record

TABLE = Table("Numbers", ("n", "square"), (("one", "1"), ("ten", "100")), "Of integers.", keys=1)


def difference(**changes) -> Difference:
    fields = {"mean": 0.0123, "std": 0.004, "n": 3, "left": "guided", "right": "mixed", "ipc": 10}
    return Difference(**fields | {"over_seeds": None, "method": "", "over_images": None} | changes)


def test_markdown_is_a_title_a_table_and_a_legend():
    lines = ["## Numbers", "", "| n | square |", "| --- | --: |", "| one | 1 |", "| ten | 100 |", "", "Of integers."]
    assert TABLE.markdown() == "\n".join(lines) + "\n"


def test_a_bar_in_a_cell_does_not_break_markdown():
    assert "a\\|b" in Table("t", ["x"], [["a|b"]], "").markdown()


def test_text_aligns_names_to_the_left_and_numbers_to_the_right():
    assert TABLE.text() == "Numbers\nn    square\n---  ------\none       1\nten     100\n"


def test_a_wide_table_is_folded_into_blocks_of_the_same_rows():
    header = ["arm", "n", *(f"column {i}".ljust(40) for i in range(4))]
    lines = Table("t", header, [["a", "3", "w", "x", "y", "z"]], "", keys=2).text().splitlines()
    assert [line.split() for line in lines if line.startswith("a ")] == [["a", "3", "w", "x"], ["a", "3", "y", "z"]]
    assert max(map(len, lines)) <= WIDTH


def test_a_column_wider_than_the_terminal_has_a_block_of_its_own():
    table = Table("t", ["arm", "x" * 30, "y" * 30], [["a", "1", "2"]], "", keys=1)
    blocks = table.text(width=20).split("\n\n")
    assert [block.splitlines()[-1].split() for block in blocks] == [["a", "1"], ["a", "2"]]


def test_means_are_over_the_trials_that_have_the_metric():
    records = [make_record("guided", 10, seed, metrics={ACCURACY: value}) for seed, value in enumerate((0.5, 0.7))]
    records.append(make_record("guided", 10, 2, metrics={}))
    found = mean_of(records, ACCURACY)
    assert (found.mean, found.n) == (pytest.approx(0.6), 2)
    assert count(records) == 2
    assert mean_of(records, "proxy/kl") is None
    assert count(records[2:]) == 0


@pytest.mark.parametrize(
    ("found", "given", "text"),
    [
        (None, {"n": 3}, "-"),
        (Spread(mean=0.5, std=0.25, n=3), {"n": 3}, "0.50 ± 0.25"),
        (Spread(mean=0.5, std=0.25, n=3), {"n": 5}, "0.50 ± 0.25 (n = 3)"),
        (Spread(mean=0.5, std=0.25, n=3), {"n": None, "factor": 100.0, "digits": 1}, "50.0 ± 25.0"),
        (Spread(mean=0.5, std=0.25, n=3), {"n": None, "deviation": False}, "0.50"),
        (Spread(mean=0.5, std=None, n=1), {"n": 1}, "0.50"),
    ],
)
def test_a_mean_stands_with_its_deviation_and_with_its_n_where_that_differs(found, given, text):
    assert mean_text(found, **given) == text


def test_an_ipc_of_0_is_a_dash():
    assert arm_cells("none", 0) == ["none", "-"]
    assert arm_cells("guided", 10) == ["guided", "10"]
    assert comparison_cells(difference()) == ["guided - mixed", "10"]


def test_a_difference_has_a_sign_and_is_in_percentage_points():
    assert signed(difference()) == "+1.23 ± 0.40"
    assert signed(difference(mean=-0.5, std=None, n=1)) == "-50.00"
    assert signed(difference(), factor=1.0, digits=3) == "+0.012 ± 0.004"
    assert signed(None) == "-"


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (0.0009, "< 0.001"), (0.001, "0.001"), (0.04567, "0.046"), (1.0, "1.000")]
)
def test_a_p_value_has_three_decimals(p, text):
    assert p_text(p) == text


def test_an_interval_has_two_signs():
    assert interval_text((-0.01, 0.025)) == "-1.00 to +2.50"
    assert interval_text((0.5, math.inf), factor=1.0, digits=1) == "+0.5 to +inf"
    assert interval_text(None) == "-"
    assert interval_text(None, unknown="not known") == "not known"
