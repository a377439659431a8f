"""Whether two runs of one experiment came to the same."""

import csv
from pathlib import Path

from condkd_ray.core.records import Record, read_records


def differences(out: Path, other: Path) -> list[str]:
    """In what `out` differs from `other`, a line each: trials, any number in them, tables.

    Times may differ, and which of the trials that share images has made them.
    """
    found, expected = ({r.config_hash: _numbers(r) for r in read_records(folder)} for folder in (out, other))
    lines = [f"{key[:12]} is missing" for key in expected if key not in found]
    lines += [f"{key[:12]} is not in {other}" for key in found if key not in expected]
    lines += [f"{key[:12]} has other numbers" for key in found if key in expected and found[key] != expected[key]]
    return lines + ["the tables differ"] * (_table(out) != _table(other))


def _numbers(record: Record) -> str:
    """Written out, so that NaN equals NaN; no two floats are written alike."""

    def lasting(row: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in row.items() if not name.startswith(("time/", "pool/"))}

    rounds = [lasting(row) for row in record.history]
    return repr((record.status, lasting(record.metrics), rounds, record.outcome.predictions, record.outcome.held))


def _table(out: Path) -> list[list[str]]:
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return [row for row in rows if not (row[4].startswith(("time/", "pool/")) or row[4].endswith("_seconds"))]
