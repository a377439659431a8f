"""Compares a disturbed run with a calm one."""

import csv
from pathlib import Path

import optuna
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from condkd_ray.core.records import Record, read_records
from condkd_ray.report.tensorboard.writer import FOLDER
from condkd_ray.study.storage import exists, open_storage

PASSING = ("time/", "pool/")
"""Metrics that may differ: times, and counts that depend on which of the sharing trials made the images."""


def differences(out: Path, other: Path) -> list[str]:
    """Return the differences between `out` and `other`, one per line: trials, numbers, tables, study, TensorBoard.

    Metrics in `PASSING` may differ.
    """
    found, expected = ({r.config_hash: _numbers(r) for r in read_records(folder)} for folder in (out, other))
    lines = [f"{key[:12]} is missing" for key in expected if key not in found]
    lines += [f"{key[:12]} is not in {other}" for key in found if key not in expected]
    lines += [f"{key[:12]} has other numbers" for key in found if key in expected and found[key] != expected[key]]
    lines += ["the tables differ"] * (_tables(out) != _tables(other))
    lines += ["the study differs"] * (_study(out) != _study(other))
    return lines + ["the TensorBoard files differ"] * (_boards(out) != _boards(other))


def check_whole(out: Path) -> None:
    """Raise `AssertionError` if a run lacks records, tables, a study or TensorBoard files."""
    parts = {"records": read_records(out), "tables": _tables(out), "study": _study(out), "boards": _boards(out)}
    lacking = [name for name, found in parts.items() if not found]
    assert not lacking, f"{out} has no {', '.join(lacking)}"


def _numbers(record: Record) -> str:
    """Return a record's numbers as text, in which NaN equals NaN and different floats differ."""
    rounds = [_lasting(row) for row in record.history]
    return repr((record.status, _lasting(record.metrics), rounds, record.outcome.predictions, record.outcome.held))


def _lasting(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith(PASSING)}


def _tables(out: Path) -> list[list[str]]:
    """Return the tables of an ablation or a search, without times."""
    rows = []
    for path in (path for name in ("table.csv", "search.csv") if (path := out / name).is_file()):
        with path.open(newline="", encoding="utf-8") as file:
            header, *body = csv.reader(file)
        kept = [at for at, name in enumerate(header) if name != "CPU s"]
        passing = [row for row in body if any(cell.startswith(PASSING) or cell.endswith("_seconds") for cell in row)]
        rows += [[row[at] for at in kept] for row in [header, *body] if row not in passing]
    return rows


def _study(out: Path) -> list[str]:
    """Return every trial in the journal, once for each entry: config hash, state, values and parameters."""
    if not exists(None, out):
        return []
    storage = open_storage(None, out)
    trials = [
        trial
        for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)
        for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials
    ]
    return sorted(repr((t.user_attrs.get("config_hash"), t.state.name, t.values, t.params)) for t in trials)


def _boards(out: Path) -> dict[str, dict[str, str]]:
    """Return the steps and values of every scalar of every run."""
    found = {}
    for folder in sorted({path.parent for path in (out / FOLDER).rglob("events*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        names = [name for name in events.Tags()["scalars"] if not name.startswith(PASSING)]
        lines = {name: repr([(one.step, one.value) for one in events.Scalars(name)]) for name in names}
        found[str(folder.relative_to(out / FOLDER))] = lines
    return found
