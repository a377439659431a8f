"""Rows of a claim: a trial each, stored as Parquet. Equal rows give equal bytes, so that a diff shows what is new."""

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
from condkd_ray.trial.outcome import diverged

METRICS = ("student/", "proxy/", "diagnosis/", "guidance/", "time/")
"""Families of the final metrics that are stored."""
_INTEGERS = ("ipc", "seed", "numbers", "test_images", "threads")
_OF_RECORD = (
    *("arm", "ipc", "seed", "dataset", "teacher", "student", "condensation", "inversion", "guidance", "memory"),
    *("config_hash", "teacher_hash", "data_hash", "condensed_hash", "proxy_hash", "git", "numbers"),
)
_OF_OUTCOME = ("status", "reason", "threads")
_OWN = ("claim", "cell", "claim_hash", "test_images", "machine", "date")
_SET = "set_digest"
"""A column that is there where some row has it."""
COLUMNS = (
    *("claim", "cell", "arm", "ipc", "seed", "status", "reason", "numbers", "claim_hash", "test_images", "dataset"),
    *("teacher", "student", "condensation", "inversion", "guidance", "memory", "config_hash", "data_hash"),
    *("teacher_hash", "condensed_hash", "proxy_hash", "machine", "threads", "versions", "git", "date", "config"),
)
"""Those of every file, in their order; metrics follow by name."""

Maker = tuple[object, ...]
"""What shapes a trial's numbers beside its config. Rows of different makers are never paired."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial of a claim. Its `record` has neither rounds nor predictions, and relative paths in its config."""

    claim: str
    cell: str
    claim_hash: str
    """Of the config as the claim states it, so that an edited claim is not answered by older rows."""
    test_images: int
    """How many it was tested on; 0 where the test images are not to be looked at."""
    machine: str
    """Kind of the processor, and of the GPU where there is one."""
    date: str
    record: Record
    set_digest: str = ""
    """Of the files of a stranger's condensed set, which its `condensed_hash` does not tell; empty where not known."""

    @property
    def member(self) -> tuple[str, str]:
        """Its cell and arm."""
        return self.cell, self.record.arm

    @property
    def failed(self) -> bool:
        """Whether the trial diverged; a trial that a machine has failed has no row."""
        return self.record.status == "failed"

    @property
    def rank(self) -> tuple[bool, bool]:
        """Of rows of one trial by one maker the lowest is taken: one that finished, and tells what it was made of."""
        return self.failed, not self.set_digest

    @property
    def maker(self) -> Maker:
        """See `Maker`; without the condensed set, which an arm without images has not."""
        one = self.record
        made_from = (one.numbers, one.data_hash, one.teacher_hash, one.proxy_hash)
        return (*made_from, self.machine, one.outcome.threads, one.versions.get("torch", ""))

    @property
    def place(self) -> tuple[object, ...]:
        """Where it stands in the file."""
        one = self.record
        tail = (one.condensed_hash, self.claim_hash, one.status, self.date)
        return (one.seed, self.cell, arm_rank(one.arm), *map(str, self.maker), *tail)


def metrics_of(record: Record, *, choosing: bool) -> dict[str, float]:
    """The final metrics of a record that are stored: of a `choosing` claim nothing of the test images."""
    kept = {name: value for name, value in record.metrics.items() if name.startswith(METRICS)}
    return {name: value for name, value in kept.items() if not (choosing and _of_test(name))}


def _of_test(name: str) -> bool:
    """Whether a metric is of the test images: of a student all are but this one."""
    return name.startswith("student/") and name != "student/val_accuracy"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at `path`, atomically, by these rows in their order."""
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
    """The rows at `path`; none where there is no file. Raises `InputError` for a file that is none of ours."""
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
    told = {name: getattr(record, name) for name in _OF_RECORD}
    came = {name: getattr(record.outcome, name) for name in _OF_OUTCOME}
    return own | told | came | trees | record.metrics


def _row(tree: Mapping[str, Any]) -> Row:
    tree = {_SET: "", **tree}
    metrics = {name: value for name, value in tree.items() if name not in (*COLUMNS, _SET) and value is not None}
    outcome = Outcome(node="", metrics=metrics, **{name: tree[name] for name in _OF_OUTCOME})
    trees = {"versions": json.loads(tree["versions"]), "config": yaml.safe_load(tree["config"])}
    told = {name: tree[name] for name in _OF_RECORD}
    record = Record(experiment=tree["claim"], **told, **trees, outcome=outcome)
    return Row(record=record, **{name: tree[name] for name in (*_OWN, _SET)})


def value(row: Row, metric: str) -> float:
    """A final metric; NaN where the trial has none."""
    return row.record.metrics.get(metric, math.nan)


def tells(record: Record, *, choosing: bool) -> bool:
    """Whether a record answers a claim: of a finished trial, or of one that diverged where candidates are ranked.

    A trial that failed otherwise, as on a machine out of memory, is run again.
    """
    return record.status == "finished" or (choosing and diverged(record.outcome))


def by_maker(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that may be paired, together: of one maker, and in each cell of one condensed set. Older groups first.

    A row without condensed images is in each group of its maker.
    """
    makers: dict[Maker, list[Row]] = {}
    for row in rows:
        makers.setdefault(row.maker, []).append(row)
    return [group for members in makers.values() for group in _by_set(members)]


def _by_set(rows: Sequence[Row]) -> list[list[Row]]:
    """Split where a cell has several condensed sets: the i-th group has the i-th set of each cell."""
    sets: dict[str, list[str]] = {}
    for row in rows:
        known = sets.setdefault(row.cell, [])
        if row.record.condensed_hash and row.record.condensed_hash not in known:
            known.append(row.record.condensed_hash)

    def group(number: int) -> list[Row]:
        def fits(row: Row) -> bool:
            known, own = sets[row.cell], row.record.condensed_hash
            return not own or own == known[min(number, len(known) - 1)]

        return [row for row in rows if fits(row)]

    return [group(number) for number in range(max(1, *map(len, sets.values())))]
