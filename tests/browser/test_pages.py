"""`report.html` and `comparison.html` as a browser shows them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report.page.page_reader import searched
from report.report_factory import diagnosed, make_manifest, make_record, remembering, sweep

from condkd_ray.core.records import grid_path, write_manifest, write_record
from condkd_ray.report.build import build
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.page import compare

pytestmark = pytest.mark.browser


def built(out: Path, records, **changes) -> Path:
    """Build the report of `records`, the first of which has images; return its folder."""
    write_manifest(out, make_manifest(records, **changes))
    for record in records:
        write_record(out, record)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    write_grid(grid_path(out, records[0].config_hash), pixels, per_class=2)
    build(out, tensorboard=False)
    return out


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> Path:
    records = [remembering(diagnosed(record)) for record in sweep(ipcs=(1, 10), seeds=(0, 1, 2))]
    return built(tmp_path_factory.mktemp("arms"), records)


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("search")
    records, about = searched(out, several=True)
    return built(out, records, search=about)


@pytest.fixture(scope="module")
def comparison(arms, tmp_path_factory) -> Path:
    other = [replace(record, versions={"torch": "2.16.0"}) for record in sweep(ipcs=(1, 10), seeds=(0, 1, 2))]
    return compare(arms, built(tmp_path_factory.mktemp("other"), other))


@pytest.fixture(scope="module")
def pages(arms, search, comparison) -> dict[str, Path]:
    return {"arms": arms / "report.html", "search": search / "report.html", "comparison": comparison}


@pytest.mark.parametrize("name", ["arms", "search", "comparison"])
def test_a_page_requests_nothing_draws_every_picture_and_has_no_errors(tab, pages, name):
    address = pages[name].as_uri()
    tab.goto(address)
    assert [url for url in tab.requests if not url.startswith("data:")] == [address]
    widths = tab.locator("img").evaluate_all("found => found.map(image => image.naturalWidth)")
    assert len(widths) >= 2
    assert min(widths) > 0
    assert tab.errors == []


@pytest.mark.parametrize("name", ["arms", "search", "comparison"])
def test_on_a_telephone_only_tables_scroll_sideways(tab, pages, name):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(pages[name].as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    small = tab.locator("section > figure img, .lead figure img").evaluate_all(
        "found => found.filter(image => image.getBoundingClientRect().width < 460).length"
    )
    assert small == 0, "letters of a picture this narrow cannot be read"


@pytest.mark.parametrize("name", ["arms", "search", "comparison"])
@pytest.mark.parametrize("width", [1000, 1199, 1200, 1440])
def test_the_top_of_a_page_does_not_scroll_sideways_on_a_screen(tab, pages, name, width):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto(pages[name].as_uri())
    wide = tab.locator(".lead .wide, .lead figure").evaluate_all(
        "found => found.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 99))"
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark_mode(tab, pages, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.goto(pages["arms"].as_uri())
    look = "element => [getComputedStyle(element).color, getComputedStyle(element.closest('.card')).backgroundColor]"
    ink, paper = (
        [int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
        for color in tab.locator("section td").first.evaluate(look)
    )
    assert abs(sum(ink) - sum(paper)) > 450


def test_the_numbers_of_the_main_table_equal_the_csv_file(tab, arms):
    tab.goto((arms / "report.html").as_uri())
    rows = [row.split("\t") for row in tab.locator("#accuracy tr").all_inner_texts()]
    head, shown = rows[0], {(row[0], row[1]): row for row in rows[1:]}
    with (arms / "table.csv").open(newline="") as file:
        rows_of_file = [row for row in csv.DictReader(file) if row["table"] == "accuracy"]
    for column, metric in {
        "test accuracy (%)": "student/test_accuracy",
        "validation (%)": "student/val_accuracy",
        "proxy agreement (%)": "proxy/agreement",
    }.items():
        expected = {
            (row["arm"], row["ipc"].replace("0", "-") if row["ipc"] == "0" else row["ipc"]):
                f"{100 * float(row['mean']):.2f} ± {100 * float(row['std']):.2f}"
            for row in rows_of_file if row["metric"] == metric
        }  # fmt: skip
        assert {key: row[head.index(column)] for key, row in shown.items()} == expected


def test_a_search_page_shows_front_course_and_confirmation_of_the_best_trials(tab, search):
    again = [
        make_record(arm, 5, seed, config_hash=f"{arm} {seed}",
                    metrics={"student/test_accuracy": 0.6 + gain + noise, "proxy/agreement": 0.5 + gain / 2 + noise})
        for arm, gain in (("default", 0.0), ("trial 2", 0.1))
        for seed, noise in ((100, 0.0), (101, 0.03 * gain), (102, 0.0))
    ]  # fmt: skip
    confirmed = search / "confirmed"
    confirmed.mkdir()
    built(confirmed, again, experiment="confirm", baseline="default")
    build(search, tensorboard=False)
    tab.goto((search / "report.html").as_uri())
    (best,) = [row for row in tab.locator(".forest tbody tr").all_inner_texts() if row.startswith("trial 2")]
    assert "+10.10" in best
    section = tab.locator("#the-best-again--with-new-seeds").inner_text()
    assert "trial 2 - default" in section
    assert "+0.0510" in section, "the difference in the objective"
    assert tab.locator("#pareto-front img").evaluate("image => image.naturalWidth") > 0
    assert "Spearman's rho of proxy/agreement" in tab.locator("#proxy-against-test-accuracy").inner_text()
    assert "forgetting" in tab.locator("#over-the-rounds").inner_text()
