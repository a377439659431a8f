"""The tables of arms: their numbers, the n of each mean, and the count of failed and pruned trials."""

import csv
import dataclasses
import io
import math

import numpy as np
import pytest

from condkd_ray.report.statistics import ACCURACY
from condkd_ray.report.tables import arms
from condkd_ray.report.tables.arms import (
    accuracy_table,
    difference_table,
    notes,
    places_table,
    rounds_table,
    terminal_table,
)
from condkd_ray.report.tables.table import WIDTH, Table
from report.report_factory import LABELS, diagnosed, make_manifest, make_record, results, sweep


def cells(table: Table, **where: str) -> dict[str, str]:
    (found,) = [
        row
        for row in (dict(zip(table.header, row, strict=True)) for row in table.rows)
        if all(row[name] == value for name, value in where.items())
    ]
    return found


def failed(arm: str, ipc: int, seed: int, **changes):
    fields = {"metrics": {}, "predictions": [], "history": [], "status": "failed"}
    return make_record(arm, ipc, seed, **fields | changes)


def test_accuracy_by_hand():
    values = [0.70, 0.72, 0.77]
    measured = [{ACCURACY: v, "time/cpu_seconds": 10.0 + s} for s, v in enumerate(values)]
    records = [make_record("mixed", 5, s, metrics=metrics) for s, metrics in enumerate(measured)]
    row = cells(accuracy_table(results(records)), arm="mixed")
    std = math.sqrt(sum((v - 0.73) ** 2 for v in values) / 2)
    assert row == {"arm": "mixed", "IPC": "5", "n": "3", "test accuracy (%)": f"73.00 ± {100 * std:.2f}",
                   "CPU s per trial": "11.0"}  # fmt: skip


def test_a_single_seed_has_no_spread():
    row = cells(accuracy_table(results([make_record("none", 0, 0, metrics={ACCURACY: 0.5})])))
    assert (row["n"], row["test accuracy (%)"], row["IPC"]) == ("1", "50.00", "-")


def test_failed_and_pruned_trials_are_counted():
    records = [make_record("mixed", 5, 0), failed("mixed", 5, 1), failed("mixed", 5, 2, status="pruned"),
               failed("guided", 5, 0), make_record("guided", 5, 3, status="running")]  # fmt: skip
    table = accuracy_table(results(records))
    assert (cells(table, arm="mixed")["failed"], cells(table, arm="mixed")["pruned"]) == ("1", "1")
    row = cells(table, arm="guided")
    assert (row["n"], row["test accuracy (%)"], row["failed"], row["CPU s per trial"]) == ("0", "-", "1", "-")


def test_a_mean_over_fewer_trials_shows_its_n():
    with_val = make_record("mixed", 5, 0, metrics={ACCURACY: 0.5, "student/val_accuracy": 0.4})
    without = make_record("mixed", 5, 1, metrics={ACCURACY: 0.6})
    row = cells(accuracy_table(results([with_val, without])))
    assert row["validation (%)"] == "40.00 (n = 1)"
    assert "proxy agreement (%)" not in row


def test_differences_in_points():
    records = [make_record("none", 0, s, metrics={ACCURACY: 0.5}, predictions=[]) for s in (0, 1)]
    records += [make_record("mixed", 5, s, metrics={ACCURACY: 0.52 + 0.02 * s}, predictions=[]) for s in (0, 1)]
    row = cells(difference_table(results(records).differences))
    assert row["difference"] == "mixed - none"
    assert row["points"] == "+3.00 ± 1.41"
    # t quantile with one degree of freedom is 12.706, times 1 point.
    assert row["95 % over seeds"] == "-9.71 to +15.71"
    assert (row["method"], row["95 % over test images"], row["n"]) == ("paired t, df 1", "-", "2")


def test_notes_name_what_went_wrong():
    records = [*sweep(("none", "mixed"), (5,), (0, 1, 2)), failed("guided", 5, 2, status="pruned", reason="too\n slow")]
    manifest = make_manifest(records, cpu_seconds=321.0)
    manifest.dataset["notes"].append("The test set is lossy.")
    found = notes(results(records, manifest))
    assert "Data digits: 400 test images." in found
    assert "Teacher lenet: accuracy test 97.22 %, validation 98.00 %." in found
    assert "6 of 7 planned trials have finished." in found
    assert "Trial guided, IPC 5, seed 2 pruned: too slow" in found
    assert "CPU time of all trials: 66 s." in found
    assert "CPU time of the last run as a whole: 321 s." in found
    assert found[-2:] == ["The test set is lossy.", "Synthetic numbers."]


def test_markdown_has_every_row_and_note(tmp_path):
    records = sweep()
    arms.write(results(records, out=tmp_path))
    text = (tmp_path / "table.md").read_text()
    body = [line for line in text.splitlines() if line.startswith("|")]
    # Three tables of a header and a rule each: 4 arms x 3 IPCs + 2 arms; 13 differences to none and 4 pairs x 3;
    # the arms' rounds.
    assert len(body) == 6 + 14 + 25 + 14
    for part in (body[:16], body[16:43], body[43:]):
        assert len({line.count("|") for line in part}) == 1
    assert "- Synthetic numbers." in text
    assert "df 4" in text


def test_csv_is_tidy_and_in_fractions(tmp_path):
    records = sweep(seeds=(0, 1, 2))
    arms.write(results(records, out=tmp_path))
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
        f"adjusted Wald, {len(LABELS)} test images",
    ]
    assert all(float(r["low"]) <= float(r["mean"]) <= float(r["high"]) for r in pairs)
    assert all(r["n"] for r in rows)


def test_columns_are_aligned_in_the_terminal():
    records = sweep(ipcs=(1,), seeds=(0, 1))
    text = terminal_table(results(records))
    lines = text.splitlines()
    first = lines.index("Accuracy")
    rule = lines[first + 2]
    ends = [i for i, (a, b) in enumerate(zip(rule, rule[1:] + " ", strict=True)) if (a, b) == ("-", " ")]
    for line in lines[first + 3 : first + 9]:
        assert all(line[end] != " " for end in ends[1:])
    assert lines[0].startswith("ablation: Do condensed images")
    assert "|" not in text


@pytest.mark.parametrize("records", [[], [make_record(status="running")]])
def test_tables_without_finished_trials_state_this(tmp_path, records):
    manifest = make_manifest(sweep())
    arms.write(results(records, manifest, tmp_path))
    assert "No trial has ended yet." in (tmp_path / "table.md").read_text()
    assert "0 of 70 planned trials have finished." in terminal_table(results(records, manifest))


def test_the_rounds_by_hand():
    metrics = {
        ACCURACY: 0.6,
        "student/test_accuracy_mean": 0.5,
        "student/test_accuracy_variance": 0.0004,
        "student/forgetting": 0.0375,
        "memory/bytes": 2.5e6,
        "guidance/accuracy": 0.75,
        "guidance/perfect_accuracy": 0.625,
        "time/inversion_seconds": 12.34,
    }
    others = metrics | {"student/forgetting": 0.0125}
    row = cells(rounds_table(results([make_record("mixed", 5, s, metrics=m) for s, m in enumerate((metrics, others))])))
    assert row == {
        "arm": "mixed",
        "IPC": "5",
        "n": "2",
        "test images": "all 400",
        "mean (%)": "50.00 ± 0.00",
        "variance (points²)": "4.00 ± 0.00",
        "forgetting (points)": "2.50 ± 1.77",
        "memory (MB)": "2.50 ± 0.00",
        "D (%)": "75.0 ± 0.0",
        "D, perfect fakes (%)": "62.5 ± 0.0",
        "inversion (s)": "12.3 ± 0.0",
    }


MEAN, IMAGES = "student/test_accuracy_mean", "student/test_images"
EXPLAINED = {
    MEAN: "Mean, variance and best of",
    "student/forgetting": "Forgetting is",
    "memory/bytes": "Memory is",
    "time/distillation_seconds": "Times are",
    "guidance/accuracy": "D: accuracy",
    "guidance/perfect_accuracy": "Perfect fakes: ",
}


@pytest.mark.parametrize("metric", EXPLAINED)
def test_the_rounds_explain_only_the_columns_that_are_shown(metric):
    legend = rounds_table(results([make_record("mixed", 5, metrics={ACCURACY: 0.6, metric: 0.5})])).legend
    assert [name for name, begin in EXPLAINED.items() if begin in legend] == [metric]


@pytest.mark.parametrize(
    ("images", "tested", "expected"),
    [(1000.0, 10_000, "1 000 of 10 000"), (10_000.0, 10_000, "all 10 000"), (360.0, 360, "all 360"),
     (None, 10_000, "1 000 of 10 000"), (None, 360, "all 360"), (None, 0, "at most 1000"), (1000.0, 0, "1 000")],
)  # fmt: skip
def test_the_mean_over_rounds_shows_its_number_of_images(images, tested, expected):
    """Records of older versions lack this number; they were measured on at most 1 000 images."""
    metrics = {ACCURACY: 0.6, MEAN: 0.5} | ({} if images is None else {IMAGES: images})
    table = rounds_table(
        results([make_record("mixed", 5, s, metrics=metrics, predictions=[0] * tested) for s in (0, 1)])
    )
    assert cells(table)["test images"] == expected
    assert "--test-rounds full" in table.legend


def test_arms_measured_on_different_numbers_of_images_are_distinguished():
    made = [
        make_record(arm, 5, 0, metrics={ACCURACY: 0.6, MEAN: 0.5, IMAGES: images}, predictions=[0] * 2000)
        for arm, images in (("mixed", 1000.0), ("guided", 2000.0))
    ]
    unmeasured = make_record("none", 0, 0, metrics={ACCURACY: 0.6, "memory/bytes": 1.0})
    table = rounds_table(results([*made, unmeasured]))
    assert [row[3] for row in table.rows] == ["-", "1 000 of 2 000", "all 2 000"]
    both = [dataclasses.replace(made[0], seed=1), dataclasses.replace(made[1], arm="mixed")]
    assert cells(rounds_table(results(both)))["test images"] == "1 000 of 2 000 and all 2 000"


def test_the_table_of_places_has_a_row_for_each_arm_with_synthetic_images():
    made = [diagnosed(make_record(arm, ipc, 0)) for arm, ipc in (("none", 0), ("mixed", 5), ("guided", 5))]
    table = places_table(results([*made, make_record("condensed_only", 5, 0), failed("guided_only", 5, 0)]))
    assert [row[0] for row in table.rows] == ["none", "mixed", "guided"]
    assert (cells(table, arm="none")["coverage"], cells(table, arm="none")["nearest guide"]) == ("-", "-")
    wanted = made[2].metrics["diagnosis/frechet_real"]
    assert cells(table, arm="guided")["Frechet to real"] == f"{wanted:.3f}"
    assert "report only" in table.legend


def test_the_diagnosis_is_shown_only_if_records_have_one(tmp_path):
    records = sweep(ipcs=(5,), seeds=(0, 1))
    manifest = make_manifest(records)
    assert "Where the synthetic images lie" not in terminal_table(results(records, manifest))
    assert "Where the synthetic images lie" in terminal_table(results([diagnosed(one) for one in records], manifest))
    arms.write(results([diagnosed(one) for one in records], manifest, tmp_path))
    assert "## Where the synthetic images lie" in (tmp_path / "table.md").read_text()
    assert ",diagnosis/frechet_real," in (tmp_path / "table.csv").read_text()


def test_no_line_is_wider_than_a_terminal():
    names = {arm: f"{arm} with a long name" for arm in ("none", "mixed", "guided")}
    made = [diagnosed(one) for one in sweep(tuple(names), ipcs=(1, 10), seeds=(0, 1))]
    made += [failed("mixed", 10, 2)]
    made = [dataclasses.replace(one, arm=names[one.arm]) for one in made]
    manifest = make_manifest(made, baseline=names["mixed"])
    text = terminal_table(results(made, manifest))
    assert max(map(len, text.splitlines())) <= WIDTH
    # One row for each of the two IPCs, in both blocks of the folded table.
    assert text.count("none with a long name - mixed with a long name") == 4


def test_differences_are_to_the_baseline():
    records = sweep(("mixed", "guided"), (5,), (0, 1))
    text = terminal_table(results(records, make_manifest(records, baseline="guided")))
    assert "mixed - guided" in text
    assert "guided - mixed" not in text


def test_a_narrow_terminal_gets_more_blocks_that_fit_its_width():
    records = [make_record(arm, 1, seed) for arm in ("none", "mixed") for seed in (0, 1)]
    blocks = []
    for width in (120, 50):
        lines = terminal_table(results(records), width).splitlines()
        rules = [line for line in lines if line.startswith("---")]
        assert all(len(line) <= width for line in rules)
        blocks.append(len(rules))
    assert blocks[0] < blocks[1]
