"""Repeating a record: the comparison of both outcomes, with the causes of a difference."""

import pytest
from report.report_factory import altered, make_scene
from toy import make_prepared, toy_config

from condkd_ray.commands.train import compare
from condkd_ray.core.method import InputError
from condkd_ray.core.records import find_record, write_record
from condkd_ray.runs.recorder import make_record
from condkd_ray.trial.plan import NUMBERS, Plan
from condkd_ray.trial.run import local_store, run_trial


@pytest.fixture(scope="module")
def record():
    config, prepared = toy_config(rounds=1), make_prepared()
    outcome = run_trial(config, prepared, local_store(config, prepared, None))
    return make_record("test", Plan("mixed", 2, 0, config), "abc", prepared, outcome)


def test_equal_predictions_are_reported_as_equal(record):
    slower = altered(record, node="elsewhere", metrics=record.metrics | {"time/wall_seconds": 1.0})
    equal, text = compare(record, slower)
    assert equal
    assert text.startswith("equal: test accuracy ")
    assert "all 128 predictions" in text


def test_unequal_predictions_are_reported_with_the_recorded_differences(record):
    flipped = [(record.outcome.predictions[0] + 1) % 4, *record.outcome.predictions[1:]]
    other = altered(record, predictions=flipped, threads=2, versions=record.versions | {"torch": "9.9"})
    equal, text = compare(record, other)
    assert not equal
    assert ", 1 predictions; differs: threads (1 then, 2 now), torch (" in text
    assert "9.9 now)" in text
    assert "nothing that is recorded" in compare(record, altered(record, predictions=flipped))[1]


def test_another_numbers_version_is_reported_as_a_difference(record):
    flipped = [(record.outcome.predictions[0] + 1) % 4, *record.outcome.predictions[1:]]
    _, text = compare(altered(record, numbers=1), altered(record, predictions=flipped))
    assert text.endswith(f"1 predictions; differs: numbers (1 then, {NUMBERS} now)")


def test_repeated_segmentations_are_compared_by_their_mean_iou_and_the_iou_of_each_class():
    first = make_scene()
    assert compare(first, first) == (
        True,
        f"equal: test mean IoU {first.metrics['student/test_miou']:.4%}, and all 5 IoU of classes",
    )
    other = altered(first, metrics=first.metrics | {"student/test_iou/car": 0.1})
    equal, text = compare(first, other)
    assert not equal
    assert ", 1 IoU of classes; differs: nothing" in text


def test_failures_are_compared_by_their_reasons(record):
    failed = altered(record, status="failed", reason="round 2: NaN", metrics={}, predictions=[])
    assert compare(failed, failed) == (True, "equal: it failed (round 2: NaN) again")
    other = altered(failed, reason="round 3: NaN")
    assert compare(failed, other) == (False, "not equal: failed (round 2: NaN) then, failed (round 3: NaN) now")
    assert compare(failed, record) == (False, "not equal: failed (round 2: NaN) then, finished now")


def test_a_record_is_found_by_the_beginning_of_its_hash(record, tmp_path):
    write_record(tmp_path, record)
    write_record(tmp_path, altered(record, config_hash="abd", status="failed"))
    write_record(tmp_path, altered(record, config_hash="abe", status="pruned"))
    assert find_record(tmp_path, "abd").config_hash == "abd"
    for beginning in ("ab", "x"):
        with pytest.raises(InputError, match=r"accepted: the beginning of just one of abc \(mixed ipc 2 seed 0\), abd"):
            find_record(tmp_path, beginning)
