"""The Parquet files contain the values of the records."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.report.parquet import predictions_table, write_tables
from condkd_ray.report.results import read
from report.report_factory import IMAGES, LABELS, ROUNDS, make_manifest, make_record


def test_parquet_columns_and_types(folder):
    failed = make_record("mixed", 5, 1, status="failed", reason="oom", metrics={}, history=[], predictions=[])
    out = folder([make_record("none", 0, 0), make_record("guided", 5, 0, metrics={"kd/odd": math.nan}), failed])
    write_tables(read(out))
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
    write_tables(read(out))
    rounds = pq.read_table(out / "rounds.parquet")
    assert rounds.num_rows == 2 * ROUNDS
    assert rounds.schema.field("round").type == pa.int32()
    assert rounds.column("kd/loss").to_pylist()[:2] == [1.0, 0.5]
    found = pq.read_table(out / "predictions.parquet")
    types = {field.name: field.type for field in found.schema}
    assert (types["image"], types["prediction"], types["label"]) == (pa.int32(), pa.uint8(), pa.uint8())
    guided = found.filter(pc.equal(found["arm"], "guided"))
    assert guided["prediction"].to_pylist() == make_record("guided", 5, 1).outcome.predictions
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
        write_tables(read(out))


def test_parquet_without_records_has_the_columns(folder):
    out = folder([])
    write_tables(read(out))
    assert pq.read_table(out / "records.parquet").num_rows == 0
    assert "prediction" in pq.read_table(out / "predictions.parquet").column_names
