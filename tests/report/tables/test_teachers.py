"""Results with one or several teachers: the sentence on the intervals, and the tables for each teacher."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from scipy import stats

from condkd_ray.core.records import Record
from condkd_ray.report import page
from condkd_ray.report.figures import accuracy
from condkd_ray.report.page.summary import facts
from condkd_ray.report.statistics import ACCURACY, by_teacher
from condkd_ray.report.tables import arms as tables
from condkd_ray.report.tables import teachers
from report.page.page_reader import Seen
from report.report_factory import make_manifest, make_record, results, sweep

SHARED = "seeds share one teacher: the intervals do not cover other teachers."
ARMS = ("none", "condensed_only", "mixed", "guided")


def with_teacher(record: Record, teacher: int | str) -> Record:
    """Return the trial with the teacher of that seed, or with that hash and a config without a teacher's seed."""
    if isinstance(teacher, str):
        return dataclasses.replace(record, teacher_hash=teacher)
    tree = record.config | {"teacher": {"name": "trained", "seed": teacher}}
    return dataclasses.replace(record, config=tree, teacher_hash=f"{teacher}{'f' * 15}")


def spread_out(number: int, seeds=range(6), arms=ARMS) -> list[Record]:
    """Return trials in which seed i has teacher i mod `number`, as with `--teachers`."""
    return [with_teacher(record, record.seed % number) for record in sweep(arms, (1, 10), seeds)]


def manifest_of(records, number: int):
    known = [{"label": "lenet", "hash": f"{i}{'f' * 15}", "test_accuracy": 0.9 + 0.02 * i} for i in range(number)]
    return make_manifest(records, teacher=known[0], teachers=known if number > 1 else [])


def cells(table, **where):
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    (found,) = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return found


def test_seeds_of_one_teacher_are_stated_to_share_it(tmp_path):
    records = spread_out(1)
    manifest = manifest_of(records, 1)
    assert teachers.sentence(results(records)) == f"All 6 {SHARED}"
    found = results(records, manifest, tmp_path)
    tables.write(found)
    page.write(found, accuracy.draw(records, manifest))
    assert f"All 6 {SHARED}" in (tmp_path / "table.md").read_text()
    assert f"All 6 {SHARED}" in tables.terminal_table(found)
    # On the first screen below the intervals, and among the notes.
    assert Seen(tmp_path / "report.html").text.count(f"All 6 {SHARED}") == 2
    for table in (teachers.accuracy_table(results(records)), teachers.difference_table(results(records))):
        assert table.rows == []


def test_without_several_seeds_or_known_teachers_there_is_no_sentence():
    assert teachers.sentence(results([])) == ""
    assert teachers.sentence(results(spread_out(1, seeds=(0,)))) == ""
    # Records of older versions have no hashes.
    assert teachers.sentence(results(sweep(ARMS, (1,), (0, 1)))) == ""
    assert teachers.lines(results(sweep(ARMS, (1,), (0, 1)), make_manifest(teacher={}))) == ["", ""]


def test_arms_with_a_teacher_each_share_it_within_the_arm():
    records = [with_teacher(make_record(arm, 5, seed), arm) for arm in ("mixed", "guided") for seed in (0, 1)]
    assert teachers.sentence(results(records)) == (
        "All seeds of an arm share one teacher: the intervals do not cover other teachers."
    )
    assert by_teacher(records) == {}


def test_spread_seeds_are_listed_and_no_teacher_is_hidden():
    sentence = teachers.sentence(results(spread_out(2)))
    assert sentence.startswith(
        "The 6 seeds are spread over 2 teachers (teacher 0: seeds 0, 2, 4; teacher 1: seeds 1, 3, 5)."
    )
    assert SHARED not in sentence
    assert teachers.sentence(results(spread_out(3, range(3)))) == (
        "Each of the 3 seeds has its own teacher: the intervals over seeds hold for other teachers too."
    )
    assert "teacher 0: 15 seeds" in teachers.sentence(results(spread_out(2, range(30), ("mixed",))))


def test_a_failed_trial_of_another_teacher_is_ignored():
    records = [
        *spread_out(1),
        with_teacher(make_record("mixed", 10, 9, status="failed", metrics={}, predictions=[]), 1),
    ]
    assert by_teacher(records) == {}
    assert teachers.sentence(results(records)) == f"All 6 {SHARED}"


def test_each_teachers_mean_by_hand():
    values = {0: 0.70, 1: 0.60, 2: 0.72, 3: 0.66, 4: 0.80}
    records = [with_teacher(make_record("mixed", 5, s, metrics={ACCURACY: v}), s % 2) for s, v in values.items()]
    row = cells(teachers.accuracy_table(results(records)), arm="mixed")
    assert row["teacher 0"] == f"74.00 ± {100 * np.std([0.70, 0.72, 0.80], ddof=1):.2f} (n = 3)"
    assert row["teacher 1"] == f"63.00 ± {100 * np.std([0.60, 0.66], ddof=1):.2f} (n = 2)"


def test_each_teachers_paired_difference_by_hand():
    none, gains = 0.5, {0: 0.02, 1: 0.08, 2: 0.04, 3: 0.10}
    records = [with_teacher(make_record("none", 0, s, metrics={ACCURACY: none + 0.01 * s}), s % 2) for s in gains]
    records += [
        with_teacher(make_record("mixed", 5, s, metrics={ACCURACY: none + 0.01 * s + gain}), s % 2)
        for s, gain in gains.items()
    ]
    row = cells(teachers.difference_table(results(records)), difference="mixed - none")
    assert (row["teacher 0"], row["teacher 1"]) == ("+3.00 ± 1.41 (n = 2)", "+9.00 ± 1.41 (n = 2)")
    # The standard error of the two means, 3 and 9 points, is 3.
    half = stats.t.ppf(0.975, 1) * 3
    assert row["95 % over teachers"] == f"{6 - half:+.2f} to {6 + half:+.2f}"


def test_a_pair_that_one_teacher_lacks_is_a_dash():
    records = [one for one in spread_out(2) if not (one.arm == "guided" and one.seed % 2)]
    row = cells(teachers.difference_table(results(records)), difference="guided - mixed", IPC="10")
    assert row["teacher 1"] == "-"
    assert row["95 % over teachers"] == "-"


def test_every_teacher_is_in_tables_page_and_notes(tmp_path):
    records = spread_out(2)
    manifest = manifest_of(records, 2)
    found = results(records, manifest, tmp_path)
    tables.write(found)
    page.write(found, accuracy.draw(records, manifest))
    text, seen = (tmp_path / "table.md").read_text(), Seen(tmp_path / "report.html")
    for shown in (text, tables.terminal_table(found), seen.text):
        assert "Test accuracy of each teacher's students" in shown or shown is seen.text
        assert "Teacher 0 (lenet): accuracy test 90.00 %." in shown
        assert "Teacher 1 (lenet): accuracy test 92.00 %." in shown
        assert "spread over 2 teachers" in shown
        assert SHARED not in shown
    assert ["arm", "IPC", "teacher 0", "teacher 1"] in seen.rows
    assert ["difference", "IPC", "teacher 0", "teacher 1", "95 % over teachers"] in seen.rows
    assert ("2 teachers", "lenet 90.00 / 92.00 %") in facts(found)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    (row,) = [row for row in rows if (row["table"], row["arm"], row["ipc"]) == ("accuracy, teacher 1", "guided", "10")]
    values = [r.metrics[ACCURACY] for r in records if (r.arm, r.ipc, r.seed % 2) == ("guided", 10, 1)]
    assert (float(row["mean"]), row["n"]) == (pytest.approx(np.mean(values)), "3")


def test_teachers_of_equal_seed_are_distinguished_by_their_hash():
    records = [with_teacher(make_record("mixed", 5, seed), f"{seed % 2}abcdef0123") for seed in range(4)]
    assert list(by_teacher(records)) == ["teacher lenet 0abcdef0", "teacher lenet 1abcdef0"]


def test_many_teachers_fit_the_first_screen():
    assert teachers.fact(manifest_of([], 5)) == [("5 teachers", "lenet 90.00 to 98.00 %")]
    others = [{"label": name, "test_accuracy": 0.9} for name in ("lenet", "resnet8")]
    assert teachers.fact(make_manifest(teachers=others)) == [("2 teachers", "lenet 90.00 %, resnet8 90.00 %")]
    assert teachers.fact(make_manifest(teacher={"label": "2 networks"})) == []


def test_figures_show_the_mean_of_teachers_of_one_network():
    records = spread_out(2)
    manifest = manifest_of(records, 2)
    assert teachers.accuracy(manifest) == ("2 teachers", pytest.approx(0.91))
    assert teachers.accuracy(manifest_of(records, 1)) == ("teacher", 0.9)
    others = [{"label": name, "hash": name, "test_accuracy": 0.9} for name in ("lenet", "resnet8")]
    assert teachers.accuracy(make_manifest(teacher={"label": "2 networks"}, teachers=others)) is None
    assert accuracy.draw(records, manifest)["figure"] is not None
