"""Tables: right numbers, never a mean without its n, and nothing hidden."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from report_factory import LABELS, make_manifest, make_record, sweep

from condkd_ray.report import tables
from condkd_ray.report.statistics import ACCURACY, comparisons
from condkd_ray.report.tables import Table, accuracy_table, difference_table, notes, terminal_table


def cells(table: Table, **where: str) -> dict[str, str]:
    (found,) = [
        row
        for row in (dict(zip(table.header, row, strict=True)) for row in table.rows)
        if all(row[name] == value for name, value in where.items())
    ]
    return found


def failed(arm: str, ipc: int, seed: int, **changes):
    fields = {"metrics": {}, "predictions": [], "history": [], "cpu_seconds": math.nan, "status": "failed"}
    return make_record(arm, ipc, seed, **fields | changes)


def test_accuracy_by_hand():
    values = [0.70, 0.72, 0.77]
    records = [make_record("mixed", 5, s, metrics={ACCURACY: v}) for s, v in enumerate(values)]
    row = cells(accuracy_table(records), arm="mixed")
    std = math.sqrt(sum((v - 0.73) ** 2 for v in values) / 2)
    assert row == {"arm": "mixed", "IPC": "5", "n": "3", "test accuracy (%)": f"73.00 ± {100 * std:.2f}",
                   "CPU s a trial": "11.0"}  # fmt: skip


def test_a_single_seed_has_no_spread():
    row = cells(accuracy_table([make_record("none", 0, 0, metrics={ACCURACY: 0.5})]))
    assert (row["n"], row["test accuracy (%)"], row["IPC"]) == ("1", "50.00", "-")


def test_failed_and_pruned_trials_are_counted():
    records = [make_record("mixed", 5, 0), failed("mixed", 5, 1), failed("mixed", 5, 2, status="pruned"),
               failed("guided", 5, 0), make_record("guided", 5, 3, status="running")]  # fmt: skip
    table = accuracy_table(records)
    assert (cells(table, arm="mixed")["failed"], cells(table, arm="mixed")["pruned"]) == ("1", "1")
    row = cells(table, arm="guided")
    assert (row["n"], row["test accuracy (%)"], row["failed"], row["CPU s a trial"]) == ("0", "-", "1", "-")


def test_a_mean_over_fewer_trials_says_so():
    with_val = make_record("mixed", 5, 0, metrics={ACCURACY: 0.5, "student/val_accuracy": 0.4})
    without = make_record("mixed", 5, 1, metrics={ACCURACY: 0.6})
    row = cells(accuracy_table([with_val, without]))
    assert row["validation (%)"] == "40.00 (n = 1)"
    assert "proxy agreement (%)" not in row


def test_differences_in_points():
    records = [make_record("none", 0, s, metrics={ACCURACY: 0.5}, predictions=[]) for s in (0, 1)]
    records += [make_record("mixed", 5, s, metrics={ACCURACY: 0.52 + 0.02 * s}, predictions=[]) for s in (0, 1)]
    row = cells(difference_table(comparisons(records)))
    assert row["difference"] == "mixed - none"
    assert row["points"] == "+3.00 ± 1.41"
    # t quantile with one degree of freedom is 12.706, times 1 point.
    assert row["95 % over seeds"] == "-9.71 to +15.71"
    assert (row["method"], row["95 % over test images"], row["n"]) == ("paired t, df 1", "-", "2")


def test_notes_name_what_went_wrong():
    records = [*sweep(("none", "mixed"), (5,), (0, 1, 2)), failed("guided", 5, 2, reason="loss term\n inversion/bn")]
    manifest = make_manifest(records, cpu_seconds=321.0)
    manifest.dataset["notes"].append("The test set is lossy.")
    said = notes(records, manifest)
    assert "Data digits: 400 test images." in said
    assert "Teacher lenet: accuracy test 97.22 %, validation 98.00 %." in said
    assert "6 of 7 planned trials have finished." in said
    assert "Trial guided, IPC 5, seed 2 failed: loss term inversion/bn" in said
    assert "CPU time of all trials: 66 s." in said
    assert "CPU time of the last run as a whole: 321 s." in said
    assert said[-2:] == ["The test set is lossy.", "Synthetic numbers."]


def test_markdown_has_every_row_and_note(tmp_path):
    records = sweep()
    tables.write(tmp_path, records, make_manifest(records))
    text = (tmp_path / "table.md").read_text()
    body = [line for line in text.splitlines() if line.startswith("|")]
    # Two tables of a header and a rule each: 4 arms x 3 IPCs + 2 arms; 13 differences to none and 3 pairs x 3.
    assert len(body) == 4 + 14 + 22
    assert len({line.count("|") for line in body[:16]}) == len({line.count("|") for line in body[16:]}) == 1
    assert "- Synthetic numbers." in text
    assert "df 4" in text


def test_csv_is_tidy_and_in_fractions(tmp_path):
    records = sweep(seeds=(0, 1, 2))
    tables.write(tmp_path, records, make_manifest(records))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert list(rows[0]) == ["table", "arm", "minus", "ipc", "metric", "mean", "std", "n", "low", "high", "method"]
    (row,) = [
        r for r in rows if (r["table"], r["arm"], r["ipc"], r["metric"]) == ("accuracy", "guided", "10", ACCURACY)
    ]
    values = [r.metrics[ACCURACY] for r in records if (r.arm, r.ipc) == ("guided", 10)]
    assert (float(row["mean"]), int(row["n"])) == (pytest.approx(np.mean(values)), 3)
    assert float(row["std"]) == pytest.approx(np.std(values, ddof=1))
    pairs = [r for r in rows if (r["table"], r["arm"], r["minus"], r["ipc"]) == ("difference", "guided", "mixed", "10")]
    assert [r["method"] for r in pairs] == [
        "paired t, df 2",
        f"percentile, 2000 resamples of {len(LABELS)} test images",
    ]
    assert all(float(r["low"]) <= float(r["mean"]) <= float(r["high"]) for r in pairs)
    assert all(r["n"] for r in rows)


def test_the_terminal_gets_aligned_columns():
    records = sweep(ipcs=(1,), seeds=(0, 1))
    text = terminal_table(records, make_manifest(records))
    lines = text.splitlines()
    first = lines.index("Accuracy")
    rule = lines[first + 2]
    ends = [i for i, (a, b) in enumerate(zip(rule, rule[1:] + " ", strict=True)) if (a, b) == ("-", " ")]
    for line in lines[first + 3 : first + 9]:
        assert all(line[end] != " " for end in ends[1:])
    assert lines[0].startswith("ablation: Do condensed images")
    assert "|" not in text


def test_a_bar_in_a_cell_does_not_break_markdown():
    assert "a\\|b" in Table("t", ["x"], [["a|b"]], "").markdown()


@pytest.mark.parametrize("records", [[], [make_record(status="running")]])
def test_nothing_finished_yet(tmp_path, records):
    manifest = make_manifest(sweep())
    tables.write(tmp_path, records, manifest)
    assert "No trial has ended yet." in (tmp_path / "table.md").read_text()
    assert "0 of 70 planned trials have finished." in terminal_table(records, manifest)
