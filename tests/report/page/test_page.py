"""The page has the numbers of the tables, embeds everything, and escapes all names."""

import base64
import re
from pathlib import Path

import pytest

from condkd_ray.core.records import write_manifest, write_record
from condkd_ray.report import page
from condkd_ray.report.build import build
from condkd_ray.report.figures import accuracy
from condkd_ray.report.results import read
from condkd_ray.report.statistics import comparisons
from condkd_ray.report.tables.arms import accuracy_table, difference_table
from report.page.page_reader import Seen, searched
from report.report_factory import altered, diagnosed, make_manifest, make_record, remembering, results, sweep

EVIL = '<script>alert("x")</script>&\'"'


def written(out: Path, records, **changes) -> Path:
    write_manifest(out, make_manifest(records, **changes))
    for record in records:
        write_record(out, record)
    manifest = make_manifest(records, **changes)
    page.write(results(records, manifest, out), None if manifest.search else accuracy.draw(records, manifest))
    return out / page.PAGE


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list, Path]:
    records = [remembering(diagnosed(record)) for record in sweep(ipcs=(1, 10), seeds=(0, 1, 2))]
    records[4] = altered(records[4], status="failed", reason="round 2: NaN", metrics={}, history=[], predictions=[])
    return records, written(tmp_path_factory.mktemp("page"), records)


def test_the_numbers_are_those_of_the_tables(whole):
    records, path = whole
    rows = Seen(path).rows
    found = results(records, make_manifest())
    for table in (accuracy_table(found), difference_table(found.judged)):
        expected = [list(row) for row in (table.header, *table.rows)]
        assert [row for row in rows if row in expected] == expected


def test_the_first_screen_shows_the_largest_ipc(whole):
    records, path = whole
    seen = Seen(path)
    (one,) = [one for one in comparisons(records) if (one.left, one.right, one.ipc) == ("guided", "mixed", 10)]
    (row,) = [row for row in seen.rows if row[0].startswith("guided \N{MINUS SIGN} mixed")]
    assert row[0].endswith(f"n = {one.n}")
    assert row[1] == f"{100 * one.mean:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert (
        seen.text.index("Do condensed images help")
        < seen.text.index("Against none with 10")
        < seen.text.index("Accuracy")
    )


def test_the_page_has_every_part(whole):
    seen = Seen(whole[1])
    for words in ("Accuracy", "Paired differences", "Over the rounds", "Where the synthetic images lie", "Failures",
                  "Proxy against test accuracy", "Spearman's rho", "Cost by phase", "Notes", "Repeat it",
                  "condkd ablation --out runs/ablation", "torch", "round 2: NaN", "--only"):  # fmt: skip
        assert words in seen.text, words


def test_nothing_is_loaded_from_outside(whole):
    seen = Seen(whole[1])
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(seen.tags)
    for tag, name, value in seen.attributes:
        assert not name.startswith("on")
        assert "http" not in value or tag == "img"
        if name in ("src", "href"):
            assert value.startswith("data:image/" if tag == "img" else "#"), value[:60]
    style = re.search(r"<style>(.*?)</style>", whole[1].read_text(), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    anchors = {value for _, name, value in seen.attributes if name == "id"}
    assert {value[1:] for _, name, value in seen.attributes if name == "href"} <= anchors


def test_every_picture_is_embedded_and_has_a_text(folder):
    records = sweep(ipcs=(1, 10), seeds=(0, 1))
    out = folder(records)
    page.write(results(records, out=out), accuracy.draw(records, make_manifest(records)))
    found = Seen(out / page.PAGE).attributes
    pictures = [value for tag, name, value in found if (tag, name) == ("img", "src")]
    grid = next((out / "grids").iterdir()).read_bytes()
    contents = [base64.b64decode(value.partition("base64,")[2]) for value in pictures]
    assert grid in contents
    assert all(content.startswith((b"\x89PNG", b"<?xml")) for content in contents)
    assert all(b"<script" not in content for content in contents)
    assert len([value for tag, name, value in found if (tag, name) == ("img", "alt") and value]) == len(pictures)


def test_names_are_escaped(tmp_path):
    records = [*sweep(("none",), (), (0, 1)), *(make_record(EVIL, 5, seed, node=EVIL) for seed in (0, 1))]
    seen = Seen(
        written(
            tmp_path, records, question=EVIL, command=EVIL, notes=[EVIL], teacher={"label": EVIL, "test_accuracy": 0.5}
        )
    )
    assert "script" not in seen.tags
    assert seen.text.count(EVIL) > 5
    assert not any("alert" in name or (name != "alt" and "alert" in value) for _, name, value in seen.attributes
                   if name != "aria-label")  # fmt: skip


def test_the_page_does_not_depend_on_the_order_in_which_records_are_written(whole, tmp_path):
    records, path = whole
    write_manifest(tmp_path, make_manifest(records))
    for record in reversed(records):
        write_record(tmp_path, record)
    found = read(tmp_path)
    page.write(found, accuracy.draw(found.records, found.manifest))
    # Failures contain the path of the folder.
    again = (tmp_path / page.PAGE).read_text(encoding="utf-8")
    assert again.replace(str(tmp_path), str(path.parent)) == path.read_text(encoding="utf-8")


def test_the_page_without_trials(tmp_path):
    assert "No two arms can be compared yet." in Seen(written(tmp_path, [])).text


def test_the_page_of_a_single_trial(tmp_path):
    record = make_record("guided", 10, 0, metrics={"student/test_accuracy": 0.5})
    text = Seen(written(tmp_path, [record])).text
    assert "Test accuracy: guided IPC 10 seed 0 (50.00 %). No two arms can be compared yet." in text


def test_the_page_of_a_search(tmp_path):
    records, about = searched(tmp_path)
    seen = Seen(written(tmp_path, records, search=about))
    assert "Trial 2 is the best of 12 by proxy/agreement, 1.0000: guidance/weight 3." in seen.text
    assert "All trials share one seed" in seen.text
    assert "importance of each parameter" in [value for _, name, value in seen.attributes if name == "alt"]
    assert re.search(r"Spearman's rho of proxy/agreement with test accuracy: \+0\.9\d over 12 trials", seen.text)
    assert "Pareto" not in seen.text


def test_the_page_of_a_search_shows_the_pareto_front(tmp_path):
    records, about = searched(tmp_path, several=True)
    seen = Seen(written(tmp_path, records, search=about))
    at = seen.text.index("Trials that no other trial beats")
    front = [row[0] for row in seen.rows if len(row) == 8 and row[1] == "finished"]
    # Weights above 3 are worse and cost more; each smaller weight costs less than all better ones.
    assert front[:6] == ["2", "6", "0", "3", "11", "9"]
    assert at > 0


def test_a_flag_without_its_value_is_ignored(tmp_path):
    records, about = searched(tmp_path)
    seen = Seen(written(tmp_path, records, search=about, command="condkd search space.yaml --study-storage --study"))
    assert "importance of each parameter" in [value for _, name, value in seen.attributes if name == "alt"]


def test_a_missing_study_of_a_search_is_stated(tmp_path):
    records, about = searched(tmp_path)
    (tmp_path / "study.journal").unlink()
    seen = Seen(written(tmp_path, records, search=about))
    assert re.search(r"Importance of parameters is not shown: the study is .*study\.journal'", seen.text)
    assert not (tmp_path / "study.journal").exists()


def test_a_search_shows_the_results_of_its_best_with_new_seeds(tmp_path):
    records, about = searched(tmp_path)
    again = [
        make_record(arm, 5, seed, config_hash=f"{arm} {seed}", metrics={"student/test_accuracy": 0.6 + gain + noise})
        for arm, gain in (("default", 0.0), ("trial 2", 0.1), ("trial 2 unguided", 0.02))
        for seed, noise in ((100, 0.0), (101, 0.03 * gain), (102, 0.0))
    ]
    (tmp_path / "confirmed").mkdir()
    written(tmp_path / "confirmed", again, experiment="confirm", baseline="default")
    seen = Seen(written(tmp_path, records, search=about))
    assert "With new seeds: against default with 5 condensed images per class, better: trial 2 (" in seen.text
    assert "Trial 2 beats itself without guidance: trial 2 - trial 2 unguided is +8." in seen.text
    assert "All trials share one seed" not in seen.text


def test_build_writes_the_page(folder):
    out = folder(sweep(seeds=(0,)))
    build(out, tensorboard=False)
    assert b"Against none with 10" in (out / "report.html").read_bytes()
