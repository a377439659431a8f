"""Rows of a claim, one per trial, stored as Parquet. Equal rows give equal bytes, so that a diff shows new rows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import Outcome, Record, arm_rank
from condkd_ray.core.storage import atomic_write
from condkd_ray.core.task import SCORES, Score
from condkd_ray.data.datasets import task_of
from condkd_ray.trial.outcome import diverged

METRICS = ("student/", "proxy/", "diagnosis/", "guidance/", "time/")
"""Families of final metrics that are stored."""
_INTEGERS = ("ipc", "seed", "numbers", "test_images", "threads")
_OF_RECORD = (
    *("arm", "ipc", "seed", "dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory"),
    *("config_hash", "teacher_hash", "data_hash", "condensed_hash", "proxy_hash", "git", "numbers"),
)
_OF_OUTCOME = ("status", "reason", "threads")
_OWN = ("claim", "cell", "claim_hash", "test_images", "machine", "date")
_SET = "set_digest"
"""A column that exists only if some row has a value for it."""
COLUMNS = (
    *("claim", "cell", "arm", "ipc", "seed", "status", "reason", "numbers", "claim_hash", "test_images", "dataset"),
    *("teacher", "student", "condensation", "inversion", "guidance", "memory", "config_hash", "data_hash"),
    *("teacher_hash", "condensed_hash", "proxy_hash", "machine", "threads", "versions", "git", "date", "config"),
)
"""Columns of every file, in this order; metrics follow, sorted by name."""

Maker = tuple[object, ...]
"""Everything besides the config that affects a trial's numbers. Rows of different makers are never paired."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial of a claim. Its `record` has no rounds and no predictions; paths in its config are relative."""

    claim: str
    cell: str
    claim_hash: str
    """Hash of the config as the claim states it: after an edit of the claim, older rows no longer match."""
    test_images: int
    """Number of test images; 0 for a choosing claim, which must not use them."""
    machine: str
    """Kind of processor, and of the GPU if one was used."""
    date: str
    record: Record
    set_digest: str = ""
    """Digest of the files of an imported condensed set, which `condensed_hash` does not cover; "" if not known."""

    @property
    def score(self) -> Score:
        """The score of students on the row's data."""
        return Score(task_of(self.record.dataset))

    @property
    def member(self) -> tuple[str, str]:
        """Cell and arm of the trial."""
        return self.cell, self.record.arm

    @property
    def failed(self) -> bool:
        """True if the trial diverged. A trial that failed because of the machine has no row."""
        return self.record.status == "failed"

    @property
    def rank(self) -> tuple[bool, bool]:
        """Sort key among rows of one trial and maker; the lowest is used: finished first, then with `set_digest`."""
        return self.failed, not self.set_digest

    @property
    def maker(self) -> Maker:
        """Maker of the row, without the condensed set, which arms without condensed images do not have."""
        one = self.record
        made_from = (one.numbers, one.data_hash, one.teacher_hash, one.proxy_hash)
        return (*made_from, self.machine, one.outcome.threads, one.versions.get("torch", ""))

    @property
    def condensed_set(self) -> str:
        """Hash of the condensed set; "" for arms without one, also for `real`, whose set is the train set."""
        return "" if self.record.arm == "real" else self.record.condensed_hash

    @property
    def place(self) -> tuple[object, ...]:
        """Sort key of the row in the file."""
        one = self.record
        tail = (one.condensed_hash, self.claim_hash, one.status, self.date)
        return (one.seed, self.cell, arm_rank(one.arm), *map(str, self.maker), *tail)


def metrics_of(record: Record, *, choosing: bool) -> dict[str, float]:
    """Return the final metrics of a record that are stored; without test metrics for a choosing claim."""
    kept = {name: value for name, value in record.metrics.items() if name.startswith(METRICS)}
    return {name: value for name, value in kept.items() if not (choosing and _of_test(name))}


def _of_test(name: str) -> bool:
    """Return whether a metric is computed on test images; all student metrics are, except the validation score."""
    return name.startswith("student/") and name not in {Score(task).val for task in SCORES}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at `path` atomically by these rows, sorted by `Row.place`."""
    ordered = sorted(rows, key=lambda row: row.place)
    names = sorted({name for row in ordered for name in row.record.metrics})
    fixed = [pa.field(name, pa.int64() if name in _INTEGERS else pa.string()) for name in COLUMNS]
    fixed += [pa.field(_SET, pa.string())] * any(row.set_digest for row in ordered)
    schema = pa.schema([*fixed, *(pa.field(name, pa.float64()) for name in names)])
    table = pa.Table.from_pylist([_flat(row) for row in ordered], schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_statistics=False)
    content = buffer.getvalue().to_pybytes()
    if not path.is_file() or path.read_bytes() != content:
        atomic_write(path, content)


def read_rows(path: Path) -> list[Row]:
    """Return the rows at `path`; none if the file does not exist. Raises `InputError` for any other file."""
    if not path.is_file():
        return []
    accepted = "a file that experiments/claims.py has written"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet ({error}); accepted: {accepted}") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    require(not missing, f"columns missing from {path}", missing, accepted)
    try:
        return [_row(tree) for tree in table.to_pylist()]
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} holds a row that does not fit ({error}); accepted: {accepted}") from None


def _flat(row: Row) -> dict[str, Any]:
    record = row.record
    trees = {
        "versions": json.dumps(record.versions, sort_keys=True),
        "config": yaml.safe_dump(record.config, sort_keys=False, width=120),
    }
    own = {name: getattr(row, name) for name in (*_OWN, _SET)}
    of_record = {name: getattr(record, name) for name in _OF_RECORD}
    of_outcome = {name: getattr(record.outcome, name) for name in _OF_OUTCOME}
    return own | of_record | of_outcome | trees | record.metrics


def _row(tree: Mapping[str, Any]) -> Row:
    tree = {_SET: "", **tree}
    metrics = {name: value for name, value in tree.items() if name not in (*COLUMNS, _SET) and value is not None}
    outcome = Outcome(node="", metrics=metrics, **{name: tree[name] for name in _OF_OUTCOME})
    trees = {"versions": json.loads(tree["versions"]), "config": yaml.safe_load(tree["config"])}
    of_record = {name: tree[name] for name in _OF_RECORD}
    record = Record(experiment=tree["claim"], **of_record, **trees, outcome=outcome)
    return Row(record=record, **{name: tree[name] for name in (*_OWN, _SET)})


def value(row: Row, metric: str) -> float:
    """Return a final metric; NaN if the trial does not have it."""
    return row.record.metrics.get(metric, math.nan)


def is_result(record: Record, *, choosing: bool) -> bool:
    """Return whether a record is a result for a claim: finished, or, for a choosing claim, diverged.

    A trial that failed for another reason, such as a machine out of memory, is run again.
    """
    return record.status == "finished" or (choosing and diverged(record.outcome))


def by_maker(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows that may be paired: the same maker and, in each cell, the same condensed set; older groups first.

    A row without condensed images is in every group of its maker.
    """
    makers: dict[Maker, list[Row]] = {}
    for row in rows:
        makers.setdefault(row.maker, []).append(row)
    return [group for members in makers.values() for group in _by_set(members)]


def _by_set(rows: Sequence[Row]) -> list[list[Row]]:
    """Split rows by condensed set: group i has the i-th set of each cell."""
    sets: dict[str, list[str]] = {}
    for row in rows:
        known = sets.setdefault(row.cell, [])
        if row.condensed_set and row.condensed_set not in known:
            known.append(row.condensed_set)

    def group(number: int) -> list[Row]:
        def fits(row: Row) -> bool:
            known, own = sets[row.cell], row.condensed_set
            return not own or own == known[min(number, len(known) - 1)]

        return [row for row in rows if fits(row)]

    return [group(number) for number in range(max(1, *map(len, sets.values())))]
