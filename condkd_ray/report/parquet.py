"""The records of an experiment as three Parquet files, for pandas, DuckDB and similar programs."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condkd_ray.core.method import InputError
from condkd_ray.core.records import Manifest, Record, flat, record_path
from condkd_ray.core.storage import atomic_write
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import Difference

_INTEGERS = ("ipc", "seed", "threads", "rounds", "peak_bytes", "numbers")
_SECONDS = ("wall_seconds", "cpu_seconds")
_KINDS = ("dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory")
_HASHES = ("config_hash", "teacher_hash", "data_hash", "condensed_hash", "proxy_hash", "pool_key")
_COSTS = ("wall_seconds", "cpu_seconds", "peak_bytes", "threads", "node", "rounds")
_ORDER = ("experiment", "arm", "ipc", "seed", *_KINDS, "status", "reason", "config")
_TRIAL = ("config_hash", "arm", "ipc", "seed")
_COLUMNS = (*_ORDER, *_HASHES, "numbers", "versions", "plugins", "git", *_COSTS)


def write_tables(results: Results) -> None:
    """Write `records.parquet`, `rounds.parquet` and `predictions.parquet` from all stored records of an experiment.

    They contain trials of every version of the numbers. Only trials with equal values in the column `numbers` may be
    compared. Raises `InputError` as `predictions_table` does.
    """
    out, records = results.out, results.stored
    _write(out / "records.parquet", records_table(records))
    _write(out / "rounds.parquet", rounds_table(records))
    _write(out / "predictions.parquet", predictions_table(out, records, results.manifest))


def records_table(records: Sequence[Record]) -> pa.Table:
    """Return a table with a row per trial. Metrics are float64: null if not measured, NaN if not finite."""
    fixed = [pa.field(name, _type(name)) for name in _COLUMNS]
    names = _names([record.metrics for record in records])
    rows = [flat(record) | _trees(record) | record.metrics for record in records]
    return pa.Table.from_pylist(rows, schema=pa.schema(fixed + [pa.field(name, pa.float64()) for name in names]))


def rounds_table(records: Sequence[Record]) -> pa.Table:
    """Return a table with a row per round of each trial."""
    names = [name for name in _names([row for record in records for row in record.history]) if name != "round"]
    trial = [(name, _type(name)) for name in ("config_hash", "seed", "arm", "ipc")]
    schema = pa.schema([*trial, ("round", pa.int32()), *((name, pa.float64()) for name in names)])
    rows = [
        {**row, "round": int(row["round"])} | {name: getattr(record, name) for name in _TRIAL}
        for record in records
        for row in record.history
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def predictions_table(out: Path, records: Sequence[Record], manifest: Manifest) -> pa.Table:
    """Return a table with a row per trial and test image. Classes are uint8, or uint16 with more than 256 classes.

    No rows in segmentation, for which predictions are not stored.

    Raises `InputError` if a trial does not have one prediction per test image.
    """
    labels = np.asarray(manifest.test_labels, dtype=np.int64)
    small = int(manifest.dataset.get("num_classes", 0)) <= 256 and labels.max(initial=0) < 256
    kind = pa.uint8() if small else pa.uint16()
    images = {"image": pa.int32(), "prediction": kind, "label": kind}
    schema = pa.schema([(name, _type(name)) for name in _TRIAL] + list(images.items()))
    parts = [_predictions(out, record, labels, schema) for record in records if record.outcome.predictions]
    return pa.concat_tables([schema.empty_table(), *parts])


def comparisons_table(differences: Sequence[Difference]) -> pa.Table:
    """A row a comparison of two arms: see `condkd_ray.report.results.Results.comparisons`."""
    ends = ("low", "high", "images_low", "images_high")
    numbers = ("mean", "std", "low", "high", "p", "images_low", "images_high")
    kinds = {"left": pa.string(), "right": pa.string(), "ipc": pa.int64(), "n": pa.int64()}
    kinds |= dict.fromkeys(numbers, pa.float64()) | {"method": pa.string()}
    rows = []
    for one in differences:
        intervals = (*(one.over_seeds or (None, None)), *(one.over_images or (None, None)))
        rows.append({**asdict(one), **dict(zip(ends, intervals, strict=True))})
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


def _predictions(out: Path, record: Record, labels: np.ndarray, schema: pa.Schema) -> pa.Table:
    if len(record.outcome.predictions) != len(labels):
        raise InputError(
            f"{record_path(out, record.config_hash)} has {len(record.outcome.predictions)} predictions; "
            f"accepted: {len(labels)}, one for each test image of experiment.json"
        )
    trial = {name: pa.repeat(getattr(record, name), len(labels)) for name in _TRIAL}
    images = {"image": np.arange(len(labels)), "prediction": record.outcome.predictions, "label": labels}
    return pa.table(trial | images).cast(schema)


def _type(name: str) -> pa.DataType:
    if name in _INTEGERS:
        return pa.int64()
    return pa.float64() if name in _SECONDS else pa.string()


def _trees(record: Record) -> dict[str, str]:
    return {name: json.dumps(getattr(record, name), sort_keys=True) for name in ("config", "versions", "plugins")}


def _names(rows: Sequence[dict[str, float]]) -> list[str]:
    return sorted({name for row in rows for name in row})


def _write(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    atomic_write(path, buffer.getvalue())
