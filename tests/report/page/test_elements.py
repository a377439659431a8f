"""The elements of a page are rendered as HTML with all text escaped, and empty ones are left out."""

from types import SimpleNamespace

import pytest

from condkd_ray.report.page import elements
from condkd_ray.report.page.elements import (
    SIGNIFICANCE,
    Code,
    Forest,
    Page,
    Rows,
    Section,
    Text,
    outcome,
    points,
    rendered,
    tables,
)
from condkd_ray.report.tables.table import Table
from report.page.page_reader import Seen


def table(rows: int) -> Table:
    return Table("Numbers", ("n", "square"), [(str(n), str(n * n)) for n in range(rows)], "Of all.", keys=1)


def seen(tmp_path, *sections: Section, **changes) -> Seen:
    fields = {"name": "it", "question": "Does it?", "verdict": ("It does.",), "facts": (), "lead": ()}
    (tmp_path / "page.html").write_bytes(rendered(Page(**fields | changes, sections=sections)))
    return Seen(tmp_path / "page.html")


def test_text_of_every_kind_is_escaped(tmp_path):
    evil = "<b>&\"'"
    found = seen(tmp_path, Section(evil, [Text(evil), Text(evil, small=True), Code(evil)]), question=evil, name=evil)
    assert found.text.count(evil) >= 6


def test_an_empty_section_is_left_out(tmp_path):
    assert "Hollow" not in seen(tmp_path, Section("Hollow", []), Section("Full", [Text("of words")])).text


def test_rows_beyond_the_maximum_are_folded_away(tmp_path):
    folded = seen(tmp_path, Section("Rows", tables(table(5), most=3)))
    assert "2 more rows" in folded.text
    assert [row for row in folded.rows if row[0].isdigit()] == [[str(n), str(n * n)] for n in range(5)]
    assert "1 more row" in seen(tmp_path, Section("Rows", tables(table(4), most=3))).text
    assert "more row" not in seen(tmp_path, Section("Rows", tables(table(3), most=3))).text


def test_tables_without_rows_are_left_out():
    full = table(2)
    assert tables(table(0), full) == [Rows(full)]


def test_the_anchor_of_a_section_is_made_of_its_title():
    assert Section("Cost by phase", []).anchor == "cost-by-phase"
    assert Section("What? 2 of 3", []).anchor == "what--2-of-3"


@pytest.mark.parametrize(
    ("p", "mean", "expected"),
    [
        (None, 1.0, "open"),
        (SIGNIFICANCE, 1.0, "open"),
        (SIGNIFICANCE / 2, 0.1, "better"),
        (SIGNIFICANCE / 2, -0.1, "worse"),
    ],
)
def test_the_mood_of_a_difference_is_that_of_its_corrected_p(p, mean, expected):
    assert outcome(SimpleNamespace(p=p, mean=mean)) == expected


def test_fractions_are_shown_as_signed_percentage_points():
    assert [points(value) for value in (0.01234, -0.5, 0.0)] == ["+1.23", "\N{MINUS SIGN}50.00", "+0.00"]


def test_a_value_is_placed_by_its_share_of_the_scale():
    scale = Forest(rows=(), low=-0.1, high=0.3, ipcs=False, p=False, legend="")
    assert [scale.place(value) for value in (-0.1, 0.0, 0.3)] == ["0.00", "25.00", "100.00"]


def test_rows_beyond_the_largest_number_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(elements, "MOST_ROWS", 4)
    rows = [[f"row {number}"] for number in range(7)]
    element = elements.Rows(Table("T", ["name"], rows, ""), most=2)
    page = elements.Page("n", "q", [], [], [], [elements.Section("S", [element])])
    html = elements.rendered(page).decode()
    assert "2 more rows" in html
    assert "row 3" in html
    assert "row 4" not in html
    assert "leaves out 3 rows" in html
