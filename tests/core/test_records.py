"""Tests of records and manifests on disk."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report.report_factory import make_manifest, make_record, sweep

from condkd_ray.core import records
from condkd_ray.core.method import InputError

numbers = st.floats(allow_nan=True, allow_infinity=True)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def same(left: float, right: float) -> bool:
    return left == right if math.isfinite(left) else math.isnan(right)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metrics=st.dictionaries(names, numbers, max_size=4),
    config=st.dictionaries(names, trees, max_size=4),
    seconds=numbers,
    predictions=st.lists(st.integers(0, 999), max_size=9),
    status=st.sampled_from(["finished", "failed", "pruned", "running"]),
    reason=names,
)
def test_a_record_is_equal_after_writing_and_reading(tmp_path, metrics, config, seconds, predictions, status, reason):
    metrics |= {"time/cpu_seconds": seconds}
    record = make_record(
        metrics=metrics, config=config, predictions=predictions, status=status, reason=reason,
        history=[{"round": 1.0} | metrics],
    )  # fmt: skip
    records.write_record(tmp_path, record)
    (read,) = records.read_records(tmp_path)
    for field in ("config", "predictions", "status", "reason", "arm", "ipc", "seed", "config_hash", "versions"):
        assert records.flat(read)[field] == records.flat(record)[field]
    assert same(seconds, read.outcome.cpu_seconds)
    assert read.metrics.keys() == metrics.keys()
    assert all(same(metrics[name], read.metrics[name]) for name in metrics)
    assert all(same(metrics[name], read.history[0][name]) for name in metrics if name != "round")


def test_json_has_null_for_nan_and_accepts_numpy_numbers(tmp_path):
    outcome = records.Outcome(status="finished", metrics={"a/b": np.float32(0.5), "a/c": math.nan}, threads=np.int64(2))
    record = replace(make_record(), outcome=outcome)
    records.write_record(tmp_path, record)
    text = records.record_path(tmp_path, record.config_hash).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"a/b": 0.5, "a/c": None}


def test_the_file_of_a_record_is_flat_and_equal_to_the_byte_after_reading_and_writing(tmp_path):
    record = make_record()
    records.write_record(tmp_path, record)
    path = records.record_path(tmp_path, record.config_hash)
    before, tree = path.read_bytes(), json.loads(path.read_bytes())
    assert list(tree) == [
        "experiment", "arm", "ipc", "seed", "dataset", "teacher", "student", "condensation", "inversion", "guidance",
        "memory", "status", "reason", "config", "config_hash", "teacher_hash", "data_hash", "condensed_hash",
        "proxy_hash", "pool_key", "scope", "versions", "git", "node", "threads", "wall_seconds", "cpu_seconds",
        "peak_bytes", "rounds", "metrics", "history", "predictions", "held", "numbers",
    ]  # fmt: skip
    assert (tree["wall_seconds"], tree["cpu_seconds"], tree["rounds"]) == (12.5, 10.0, len(record.history))
    assert records.read_records(tmp_path) == [record]
    records.write_record(tmp_path, records.read_records(tmp_path)[0])
    assert path.read_bytes() == before


def test_records_are_sorted_by_arm_ipc_and_seed(tmp_path):
    for record in reversed([*sweep(ipcs=(1, 10), seeds=(0, 1)), make_record("aside", 1, 0)]):
        records.write_record(tmp_path, record)
    read = [(record.arm, record.ipc, record.seed) for record in records.read_records(tmp_path)]
    assert read[:4] == [("none", 0, 0), ("none", 0, 1), ("condensed_only", 1, 0), ("condensed_only", 1, 1)]
    assert [arm for arm, _, _ in read[-3:]] == ["real", "real", "aside"]


def test_finished_returns_only_finished_trials(tmp_path):
    for status in ("finished", "failed", "pruned", "running"):
        records.write_record(tmp_path, make_record(status=status, config_hash=status))
    assert records.finished(tmp_path) == {"finished"}
    assert records.finished(tmp_path / "nothing") == set()


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"arm": "guid',
        "[1]",
        '{"arm": "guided"}',
        "\0" * 50,
        '{"metrics": [1]}',
        '{"history": [[1]]}',
        '{"metrics": {"x": "y"}}',
    ],
)
def test_the_error_of_a_damaged_record_names_its_file(tmp_path, content):
    records.write_record(tmp_path, make_record())
    path = records.record_path(tmp_path, "broken")
    path.write_text(content)
    with pytest.raises(InputError, match=r"broken\.json"):
        records.read_records(tmp_path)


def test_the_error_names_an_unknown_status_or_field(tmp_path):
    records.write_record(tmp_path, make_record())
    path = records.record_path(tmp_path, make_record().config_hash)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"status": "lost"}))
    with pytest.raises(InputError, match="lost"):
        records.read_records(tmp_path)
    path.write_text(json.dumps(tree | {"colour": "red"}))
    with pytest.raises(InputError, match="colour"):
        records.read_records(tmp_path)


def test_a_manifest_is_equal_after_writing_and_reading(tmp_path):
    manifest = make_manifest(sweep(seeds=(0,)))
    records.write_manifest(tmp_path, manifest)
    assert records.read_manifest(tmp_path) == manifest


def test_a_manifest_without_a_baseline_has_the_baseline_none(tmp_path):
    records.write_manifest(tmp_path, make_manifest(baseline="mixed"))
    path = tmp_path / records.MANIFEST
    tree = json.loads(path.read_text())
    assert tree.pop("baseline") == "mixed"
    path.write_text(json.dumps(tree))
    assert records.read_manifest(tmp_path).baseline == "none"


def test_a_folder_of_another_kind_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"experiment\.json"):
        records.read_manifest(tmp_path)
    records.check_same_experiment(tmp_path, "ablation")
    records.check_same_experiment(tmp_path / "new", "ablation")
    records.write_manifest(tmp_path, make_manifest())
    records.check_same_experiment(tmp_path, "ablation")
    with pytest.raises(InputError, match="'other'"):
        records.check_same_experiment(tmp_path, "other")
    records.write_manifest(tmp_path, make_manifest(format=99))
    with pytest.raises(InputError, match="99"):
        records.check_same_experiment(tmp_path, "ablation")
    with pytest.raises(InputError, match="is a file"):
        records.check_same_experiment(tmp_path / "experiment.json", "ablation")
