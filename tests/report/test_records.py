"""Records survive the disk, and the Parquet files say the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condkd_ray.core.method import InputError
from condkd_ray.report import records
from condkd_ray.report.parquet import predictions_table, write_tables
from report.report_factory import IMAGES, LABELS, ROUNDS, make_manifest, make_record, sweep

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
def test_a_record_survives_the_disk(tmp_path, metrics, config, seconds, predictions, status, reason):
    record = make_record(
        metrics=metrics, config=config, cpu_seconds=seconds, predictions=predictions, status=status, reason=reason,
        history=[{"round": 1.0} | metrics],
    )  # fmt: skip
    records.write_record(tmp_path, record)
    (read,) = records.read_records(tmp_path)
    for field in ("config", "predictions", "status", "reason", "arm", "ipc", "seed", "config_hash", "versions"):
        assert getattr(read, field) == getattr(record, field)
    assert same(record.cpu_seconds, read.cpu_seconds)
    assert read.metrics.keys() == metrics.keys()
    assert all(same(metrics[name], read.metrics[name]) for name in metrics)
    assert all(same(metrics[name], read.history[0][name]) for name in metrics if name != "round")


def test_json_holds_no_nan_and_takes_numpy_numbers(tmp_path):
    record = make_record(metrics={"a/b": np.float32(0.5), "a/c": math.nan}, threads=np.int64(2))
    records.write_record(tmp_path, record)
    text = records.record_path(tmp_path, record.config_hash).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"a/b": 0.5, "a/c": None}


def test_records_come_in_the_order_of_arms_ipcs_and_seeds(tmp_path):
    for record in reversed([*sweep(ipcs=(1, 10), seeds=(0, 1)), make_record("aside", 1, 0)]):
        records.write_record(tmp_path, record)
    read = [(record.arm, record.ipc, record.seed) for record in records.read_records(tmp_path)]
    assert read[:4] == [("none", 0, 0), ("none", 0, 1), ("condensed_only", 1, 0), ("condensed_only", 1, 1)]
    assert [arm for arm, _, _ in read[-3:]] == ["real", "real", "aside"]


def test_only_finished_trials_need_not_run_again(tmp_path):
    for status in ("finished", "failed", "pruned", "running"):
        records.write_record(tmp_path, make_record(status=status, config_hash=status))
    assert records.finished(tmp_path) == {"finished"}
    assert records.finished(tmp_path / "nothing") == set()


@pytest.mark.parametrize("content", ["", '{"arm": "guid', "[1]", '{"arm": "guided"}'])
def test_a_broken_record_is_named(tmp_path, content):
    records.write_record(tmp_path, make_record())
    path = records.record_path(tmp_path, "broken")
    path.write_text(content)
    with pytest.raises(InputError, match=r"broken\.json"):
        records.read_records(tmp_path)


def test_an_unknown_status_or_field_is_named(tmp_path):
    records.write_record(tmp_path, make_record())
    path = records.record_path(tmp_path, make_record().config_hash)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"status": "lost"}))
    with pytest.raises(InputError, match="lost"):
        records.read_records(tmp_path)
    path.write_text(json.dumps(tree | {"colour": "red"}))
    with pytest.raises(InputError, match="colour"):
        records.read_records(tmp_path)


def test_the_manifest_survives_the_disk(tmp_path):
    manifest = make_manifest(sweep(seeds=(0,)))
    records.write_manifest(tmp_path, manifest)
    assert records.read_manifest(tmp_path) == manifest


def test_a_manifest_of_before_there_were_baselines_is_compared_with_none(tmp_path):
    records.write_manifest(tmp_path, make_manifest(baseline="mixed"))
    path = tmp_path / records.MANIFEST
    tree = json.loads(path.read_text())
    assert tree.pop("baseline") == "mixed"
    path.write_text(json.dumps(tree))
    assert records.read_manifest(tmp_path).baseline == "none"


def test_a_folder_of_something_else_is_refused(tmp_path):
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


def test_parquet_columns_and_types(folder):
    failed = make_record("mixed", 5, 1, status="failed", reason="oom", metrics={}, history=[], predictions=[])
    out = folder([make_record("none", 0, 0), make_record("guided", 5, 0, metrics={"kd/odd": math.nan}), failed])
    write_tables(out)
    table = pq.read_table(out / "records.parquet")
    types = {field.name: field.type for field in table.schema}
    assert [types[name] for name in ("arm", "config", "versions", "reason")] == [pa.string()] * 4
    assert [types[name] for name in ("ipc", "seed", "rounds", "peak_bytes", "threads")] == [pa.int64()] * 5
    assert types["student/test_accuracy"] == types["cpu_seconds"] == types["kd/odd"] == pa.float64()
    rows = {row["arm"]: row for row in table.to_pylist()}
    assert rows["none"]["kd/odd"] is None
    assert math.isnan(rows["guided"]["kd/odd"])
    assert rows["mixed"]["student/test_accuracy"] is None
    assert json.loads(rows["none"]["config"]) == make_record("none", 0, 0).config


def test_rounds_and_predictions_parquet(folder):
    out = folder([make_record("none", 0, 0), make_record("guided", 5, 1)])
    write_tables(out)
    rounds = pq.read_table(out / "rounds.parquet")
    assert rounds.num_rows == 2 * ROUNDS
    assert rounds.schema.field("round").type == pa.int32()
    assert rounds.column("kd/loss").to_pylist()[:2] == [1.0, 0.5]
    found = pq.read_table(out / "predictions.parquet")
    types = {field.name: field.type for field in found.schema}
    assert (types["image"], types["prediction"], types["label"]) == (pa.int32(), pa.uint8(), pa.uint8())
    guided = found.filter(pa.compute.equal(found["arm"], "guided"))
    assert guided["prediction"].to_pylist() == make_record("guided", 5, 1).predictions
    assert guided["label"].to_pylist() == LABELS.tolist()
    assert guided["image"].to_pylist() == list(range(IMAGES))


def test_many_classes_need_wider_predictions(tmp_path):
    manifest = make_manifest(dataset={"num_classes": 1000}, test_labels=[999, 0])
    table = predictions_table(tmp_path, [make_record(predictions=[999, 1])], manifest)
    assert table.schema.field("prediction").type == pa.uint16()
    assert table["prediction"].to_pylist() == [999, 1]


def test_predictions_that_do_not_fit_the_test_set_are_named(folder):
    out: Path = folder([make_record(predictions=[1, 2])])
    with pytest.raises(InputError, match=make_record().config_hash):
        write_tables(out)


def test_parquet_of_nothing_has_the_columns(folder):
    out = folder([])
    write_tables(out)
    assert pq.read_table(out / "records.parquet").num_rows == 0
    assert "prediction" in pq.read_table(out / "predictions.parquet").column_names
