"""A search as tables: its trials, the best first, with what the search looked at and, apart from it, test accuracy."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from condkd_ray.core.files import atomic_write
from condkd_ray.report.records import Manifest, Record
from condkd_ray.report.statistics import ACCURACY, rankings
from condkd_ray.report.tables.table import WIDTH, Table
from condkd_ray.study.objective import parse_constraints

SHOWN = 12
"""As many of the best trials, at most, stand in the table for a terminal."""
_LEGEND = (
    "The best trial first, by {first}. The search saw nothing but {objective}; test accuracy was measured once, when "
    "the study had been told, and decides nothing: of many trials the best by it is too good to be true."
)
LIMITS = "constraints"
_LIMITED = " Infeasible are those that break one of {}: they are never the best."


def search_table(records: Sequence[Record], manifest: Manifest) -> Table:
    """A row a trial that is over: objectives, test accuracy, seconds, and the values of its open leaves."""
    objective, paths = manifest.search["objective"], manifest.search["parameters"]
    header = ["trial", "status", "rounds", *objective, "test accuracy (%)", "CPU s", *paths]
    ended = sorted((r for r in records if r.status != "running"), key=lambda record: _place(record, manifest))
    rows = [
        [
            record.arm.removeprefix("trial "),
            record.status if keeps(record, manifest) else f"{record.status}, infeasible",
            str(record.rounds),
            *(_objective(name, value(record, name)) for name in objective),
            _fixed(100 * record.metrics.get(ACCURACY, math.nan), 2),
            _fixed(record.cpu_seconds, 1),
            *(_leaf(record.config, path) for path in paths),
        ]
        for record in ended
    ]
    legend, limits = _LEGEND.format(first=objective[0], objective=", ".join(objective)), manifest.search.get(LIMITS, [])
    return Table("Trials", header, rows, legend + (_LIMITED.format(", ".join(limits)) if limits else ""), keys=2)


def ranked(records: Sequence[Record], manifest: Manifest) -> list[Record]:
    """Finished trials that keep to all limits, the best by the first objective first."""
    found = (record for record in records if record.status == "finished" and keeps(record, manifest))
    return sorted(found, key=lambda record: _place(record, manifest))


def keeps(record: Record, manifest: Manifest) -> bool:
    """Whether a trial has kept to all limits of its search, as far as it came."""
    return all(
        not one.excess(value(record, one.name)) > 0 for one in parse_constraints(manifest.search.get(LIMITS, []))
    )


def write(out: Path, records: Sequence[Record], manifest: Manifest) -> None:
    """Write `search.md` and `search.csv` under `out`."""
    table = search_table(records, manifest)
    lines = [f"# {manifest.experiment}: {manifest.question}", "", table.markdown(), *notes(records, manifest)]
    atomic_write(Path(out) / "search.md", ("\n".join(lines) + "\n").encode())
    text = io.StringIO()
    csv.writer(text).writerows([table.header, *table.rows])
    atomic_write(Path(out) / "search.csv", text.getvalue().encode())


def terminal_table(records: Sequence[Record], manifest: Manifest, width: int = WIDTH) -> str:
    """The best of the same as plain text."""
    head, table = f"{manifest.experiment}: {manifest.question}\n", search_table(records, manifest)
    best = replace(table, title=f"Trials, the best by {manifest.search['objective'][0]} first", rows=table.rows[:SHOWN])
    more = [f"and {len(table.rows) - SHOWN} more, in search.md\n"] * (len(table.rows) > SHOWN)
    shown = [best.text(width)] if best.rows else []
    return "\n".join([head, *shown, *more, *notes(records, manifest)]) + "\n"


def notes(records: Sequence[Record], manifest: Manifest) -> list[str]:
    """How many trials came to what, and how well what was looked at ranks them by test accuracy."""
    counts = {name: sum(record.status == name for record in records) for name in ("finished", "pruned", "failed")}
    told = ", ".join(f"{count} trials {name}" for name, count in counts.items() if count)
    lines = [f"{told or 'No trial has ended yet'}."]
    lines += [
        f"Spearman's rho of {one.proxy} with test accuracy over {one.n} finished trials: {one.rho:+.2f}."
        for one in rankings(records, manifest.search["objective"][0])
    ]
    spent = math.fsum(record.cpu_seconds for record in records if math.isfinite(record.cpu_seconds))
    return [*lines, f"CPU time of all trials: {spent:.0f} s.", *manifest.notes]


def value(record: Record, name: str) -> float:
    """An objective at the trial's end, or where it was stopped."""
    told = [row[name] for row in record.history if name in row]
    last = (math.fsum(told) if name.startswith("time/") else told[-1]) if told else math.nan
    return record.metrics.get(name, last)


def _place(record: Record, manifest: Manifest) -> tuple[bool, bool, float, str]:
    """Sort key: finished ones by the first objective, those that keep to all limits first, then the others."""
    first = value(record, manifest.search["objective"][0])
    sign = 1 if manifest.search["directions"][0] == "minimize" else -1
    order = math.inf if math.isnan(first) else sign * first
    return record.status != "finished", not keeps(record, manifest), order, record.arm


def _leaf(config: Mapping[str, Any], path: str) -> str:
    """The value of an open leaf in a trial's config; nothing where its method has no such leaf."""
    found: Any = config
    for key in path.split("/"):
        if isinstance(found, list):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return ""
    return _number(found) if isinstance(found, float) else str(found)


def _objective(name: str, number: float) -> str:
    """Times and bytes in as many digits as they need, others so that a column's points stand below one another."""
    return _number(number) if name.startswith(("time/", "memory/")) else _fixed(number, 4)


def _fixed(number: float, digits: int) -> str:
    return "-" if math.isnan(number) else f"{number:.{digits}f}"


def _number(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.4g}"
