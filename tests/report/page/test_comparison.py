"""The page that compares two folders: comparable pairs, differing settings, and folders that are refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from condkd_ray.commands.report import Report, rebuild
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Record, write_manifest, write_record
from condkd_ray.report import page
from condkd_ray.report.page.comparison import differences, paired
from report.page.page_reader import Seen, searched
from report.report_factory import LABELS, altered, make_manifest, make_record, sweep

ARMS, SEEDS = ("none", "mixed"), (0, 1, 2)


def changed(record: Record, gain: float = 0.02, **tree) -> Record:
    accuracy = record.metrics["student/test_accuracy"] + gain + 0.002 * record.seed
    metrics = record.metrics | {"student/test_accuracy": accuracy}
    return altered(record, config=record.config | {"rounds": 8} | tree, metrics=metrics, predictions=[])


def store(out: Path, records, **changes) -> Path:
    out.mkdir(exist_ok=True)
    write_manifest(out, make_manifest(records, **changes))
    for record in records:
        write_record(out, record)
    return out


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    first = sweep(ARMS, (5,), SEEDS)
    second = [replace(changed(record), git="newer") for record in first]
    return store(tmp_path / "a", first), store(tmp_path / "b", second, command="condkd ablation --rounds 8")


def test_differences_are_paired_by_seed():
    first = sweep(ARMS, (5,), SEEDS)
    found = differences(paired(first, [changed(record) for record in first]), LABELS.tolist())
    assert [(one.left, one.right, one.ipc, one.n) for one in found] == [("none: B", "A", 0, 3), ("mixed: B", "A", 5, 3)]
    for one in found:
        assert one.mean == pytest.approx(0.022)
        assert one.std == pytest.approx(np.std([0, 0.002, 0.004], ddof=1))


def test_a_pair_that_differs_in_more_settings_is_not_compared():
    first = sweep(ARMS, (5,), SEEDS)
    second = [changed(record) for record in first]
    second[4] = changed(first[4], rounds=99)
    second[5] = changed(first[5])
    found = paired(first, second)
    assert [(a.arm, a.seed) for a, _ in found.odd] == [(first[4].arm, first[4].seed)]
    assert found.changes == {"rounds": (("absent", "8"), 5)}
    assert {one.n for one in differences(found, [])} == {2, 3}


def test_a_differing_setting_that_only_some_arms_have_is_listed():
    first = [
        replace(one, config={"guidance": {"weight": 1.0} if one.arm == "mixed" else {}})
        for one in sweep(ARMS, (5,), SEEDS)
    ]
    second = [replace(one, config={"guidance": {"weight": 2.0} if one.arm == "mixed" else {}}) for one in first]
    found = paired(first, second)
    assert not found.odd
    assert found.changes == {"guidance/weight": (("1.0", "2.0"), 3)}


def test_trials_of_only_one_run_are_in_no_pair():
    found = paired(sweep(ARMS, (5,), SEEDS), sweep(("mixed", "guided"), (5, 10), (1, 2, 3)))
    assert [(a.arm, a.ipc, a.seed) for a, _ in found.pairs] == [("mixed", 5, 1), ("mixed", 5, 2)]


def test_the_page_shows_differences_and_settings(two):
    path = page.compare(*two)
    assert path == two[0] / "comparison.html"
    seen = Seen(path)
    assert "B against A, better: none (+2.20 points) and mixed IPC 5 (+2.20)" in seen.text.replace(
        "mixed (", "mixed IPC 5 ("
    )
    assert ["git", "-", "newer"] in seen.rows
    assert ["rounds", "absent", "8", "6 of 6"] in seen.rows
    assert "condkd ablation --rounds 8" in seen.text
    assert not {"script", "link", "iframe"} & set(seen.tags)
    (row,) = [row for row in seen.rows if row[0] == "mixed" and row[1] == "5"]
    assert row[2:4] == ["3", "3"]
    assert sorted(path.name for path in two[1].iterdir()) == ["experiment.json", "records"]


def test_the_page_can_be_written_to_another_path(two, tmp_path):
    assert page.compare(*two, tmp_path / "x" / "page.html").read_bytes().startswith(b"<!DOCTYPE html>")
    assert not (two[0] / "comparison.html").exists()


def test_a_run_compared_with_itself_has_no_differences(two):
    seen = Seen(page.compare(two[0], two[0]))
    assert "Each trial that is in both runs has the same test accuracy in both." in seen.text
    assert "None: trials of equal arm, IPC and seed have equal configs." in seen.text


def test_runs_without_common_trials_are_stated(tmp_path):
    a = store(tmp_path / "a", sweep(("none",), (), (0,)))
    b = store(tmp_path / "b", sweep(("mixed",), (5,), (0,)))
    assert "no finished trials of equal arm, IPC and seed that may be compared" in Seen(page.compare(a, b)).text


def test_two_searches_are_compared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        records, about = searched(tmp_path / name)
        store(tmp_path / name, records, search=about)
    seen = Seen(page.compare(tmp_path / "a", tmp_path / "b"))
    assert "A: Trial 2 is the best of 12" in seen.text
    assert "B: Trial 2 is the best of 12" in seen.text


def test_other_data_are_refused(two, tmp_path):
    other = store(tmp_path / "c", sweep(ARMS, (5,), (0,)), dataset={"name": "mnist", "hash": "m"})
    with pytest.raises(InputError, match=r"the data set of .*c is 'mnist m'; accepted: digits d, the data set of .*a"):
        page.compare(two[0], other)
    assert not (two[0] / "comparison.html").exists()


def test_another_format_is_refused(two):
    path = two[1] / "experiment.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="format is 2; accepted: 1"):
        page.compare(*two)


def test_a_search_and_an_ablation_are_refused(two, tmp_path):
    (tmp_path / "s").mkdir()
    records, about = searched(tmp_path / "s")
    search = store(tmp_path / "s", records, search=about)
    with pytest.raises(InputError, match=r"a search'; accepted: an experiment, like .*a$"):
        page.compare(two[0], search)


def test_trials_without_a_test_accuracy_are_ignored(tmp_path):
    records = [make_record("mixed", 5, seed) for seed in SEEDS]
    broken = [altered(one, metrics=one.metrics | {"student/test_accuracy": math.nan}) for one in records]
    a, b = store(tmp_path / "a", records), store(tmp_path / "b", broken)
    assert "no finished trial" in Seen(page.compare(a, b)).text


def test_the_command_compares_two_folders(two, tmp_path, capsys, logged):
    assert rebuild(Report(two[0], two[1])) == 0
    assert capsys.readouterr().out.strip() == str(two[0] / "comparison.html")
    with pytest.raises(InputError, match=r"--to is .*accepted: --to only with two folders"):
        rebuild(Report(two[0], to=tmp_path / "page.html"))
    assert rebuild(Report(two[0])) == 0
    assert any("report.html" in line for line in logged)
