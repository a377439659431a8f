"""Records with different versions of the numbers are never combined in a table, figure, page or comparison."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.core.records import (
    Record,
    check_same_numbers,
    find_record,
    finished,
    read_all_records,
    read_records,
    record_path,
    write_manifest,
    write_record,
)
from condkd_ray.report import page
from condkd_ray.report.build import build
from condkd_ray.report.figures import samplers
from condkd_ray.report.statistics import ACCURACY
from condkd_ray.study.objective import Objective
from report.page.page_reader import Seen, searched
from report.report_factory import altered, make_manifest, make_record, sweep

ARMS, SEEDS = ("none", "mixed", "guided"), (0, 1, 2)


def of_version(records, numbers: int, accuracy: float | None = None) -> list[Record]:
    """Return the trials with another version of the numbers, with other hashes, and with `accuracy` if given."""
    return [
        altered(
            one,
            numbers=numbers,
            config_hash=f"{numbers}{one.config_hash}",
            metrics=one.metrics if accuracy is None else one.metrics | {ACCURACY: accuracy},
        )
        for one in records
    ]


def store(out: Path, records, planned=None, **changes) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, make_manifest(records if planned is None else planned, **changes))
    for record in records:
        write_record(out, record)
    return out


def test_a_record_without_a_version_has_the_first_version(folder):
    out = folder([make_record()])
    path = record_path(out, make_record().config_hash)
    tree = json.loads(path.read_text())
    assert tree.pop("numbers") == 1
    path.write_text(json.dumps(tree))
    assert [record.numbers for record in read_records(out)] == [1]


def test_only_records_of_the_newest_version_are_read_for_comparisons(tmp_path):
    old, new = sweep(ARMS, (5,), SEEDS), of_version(sweep(ARMS[:2], (5,), SEEDS), 2)
    out = store(tmp_path, [*old, *new])
    assert {record.config_hash for record in read_records(out)} == {record.config_hash for record in new}
    assert len(read_all_records(out)) == len(old) + len(new)
    assert finished(out) == {record.config_hash for record in new}
    assert find_record(out, old[0].config_hash).numbers == 1


def test_a_report_shows_only_the_newest_version_and_states_what_it_leaves_out(tmp_path):
    new = of_version(sweep(ARMS, (5,), SEEDS), 2)
    alone = build(store(tmp_path / "alone", new), tensorboard=False)
    old = of_version(sweep(ARMS, (5,), SEEDS), 1, accuracy=0.01)
    mixed = store(tmp_path / "mixed", [*old, *new])
    text = build(mixed, tensorboard=True)
    note = "9 stored trials are left out of tables and figures: made by an earlier version whose numbers differ"
    assert note in text
    # Tables and figures, except for notes and the list of planned trials, equal those without the old records.
    assert text.split("Data digits")[0] == alone.split("Data digits")[0]
    for name in ("table.csv", "figure.svg", "curves.png"):
        assert (mixed / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert note in (mixed / "table.md").read_text()
    assert note in Seen(mixed / "report.html").text
    assert ["numbers", "2"] in Seen(mixed / "report.html").rows
    assert not [path for path in (mixed / "tensorboard").rglob("*") if old[0].config_hash[:8] in path.name]
    table = pq.read_table(mixed / "records.parquet")
    assert sorted(set(table["numbers"].to_pylist())) == [1, 2]
    assert table.num_rows == len(old) + len(new)


def test_trials_of_another_plan_do_not_hide_those_that_are_planned(tmp_path):
    planned = sweep(ARMS, (5,), SEEDS)
    newer = of_version(sweep(("guided_only",), (5,), SEEDS), 2)
    text = build(store(tmp_path, [*planned, *newer], planned), tensorboard=False)
    assert "3 stored trials are of other settings and left out" in text
    assert "guided - mixed" in text
    assert "guided_only" not in text


def test_two_folders_of_different_versions_are_refused(tmp_path):
    records = sweep(ARMS, (5,), SEEDS)
    first, second = store(tmp_path / "a", of_version(records, 2)), store(tmp_path / "b", records)
    with pytest.raises(InputError, match=r"version of the numbers of .*b is 1; accepted: 2, as in .*a: run the older"):
        page.compare(first, second)
    assert not (first / "comparison.html").exists()
    # A folder without finished trials has no version.
    page.compare(first, store(tmp_path / "empty", [], records))


def test_the_newest_records_of_two_folders_are_compared(tmp_path):
    records = sweep(ARMS, (5,), SEEDS)
    first = store(tmp_path / "a", [*of_version(records, 1, accuracy=0.01), *of_version(records, 2)])
    second = store(tmp_path / "b", of_version(records, 2))
    assert (
        "Each trial that is in both runs has the same test accuracy in both." in Seen(page.compare(first, second)).text
    )


def test_searches_of_different_versions_are_not_compared(tmp_path):
    name = "proxy/agreement"
    searches = {sampler: [[tmp_path / sampler]] for sampler in ("random", "tpe")}
    for version, sampler in enumerate(searches, start=1):
        metrics_of_trial = {name: 0.5, ACCURACY: 0.5}
        store(tmp_path / sampler, [make_record("trial 0", 5, 0, metrics=metrics_of_trial, numbers=version)])
    with pytest.raises(InputError, match=r"version of the numbers of .*tpe is 2; accepted: 1, as in .*random"):
        samplers.compare(tmp_path, searches, 0, Objective((name,)))
    check_same_numbers({})


@pytest.mark.parametrize(("version", "shown"), [(1, True), (2, False)])
def test_a_search_shows_confirmation_trials_only_of_its_own_version(tmp_path, version, shown):
    records, about = searched(tmp_path)
    again = [
        make_record(arm, 5, seed, config_hash=f"{arm} {seed}", metrics={ACCURACY: value}, numbers=version)
        for arm, value in (("default", 0.6), ("trial 2", 0.7))
        for seed in (100, 101)
    ]
    store(tmp_path / "confirmed", again, experiment="confirm", baseline="default")
    store(tmp_path, records, search=about)
    build(tmp_path, tensorboard=False)
    text = Seen(tmp_path / "report.html").text
    assert ("With new seeds:" in text) == shown
    assert ("not shown, because they have version 2 of the numbers" in text) == (not shown)


def test_the_csv_contains_only_the_newest_version(tmp_path):
    old = of_version(sweep(ARMS, (5,), SEEDS), 1, accuracy=0.01)
    new = of_version(sweep(ARMS, (5,), SEEDS), 2, accuracy=0.75)
    out = store(tmp_path, [*old, *new])
    build(out, tensorboard=False)
    with (out / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["table"], row["metric"]) == ("accuracy", ACCURACY)]
    assert {(float(row["mean"]), row["n"]) for row in rows} == {(0.75, "3")}
