"""A search as tables: its trials, the best first, with what the search looked at and, apart from it, test accuracy."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from condkd_ray.core.storage import atomic_write
from condkd_ray.report.results import Results, value
from condkd_ray.report.statistics import ACCURACY
from condkd_ray.report.tables.table import WIDTH, Table

SHOWN = 12
"""As many of the best trials, at most, stand in the table for a terminal."""
_LEGEND = (
    "The best trial first, by {first}. The search saw nothing but {objective}; test accuracy was measured once, when "
    "the study had been told, and decides nothing: of many trials the best by it is too good to be true."
)
_LIMITED = " Infeasible are those that break one of {}: they are never the best."


def search_table(results: Results) -> Table:
    """A row a trial that is over: objectives, test accuracy, seconds, and the values of its open leaves.

    Where the folder has trials of several studies each is named with its own; one that several have stands once.
    """
    several = len({record.study for record in results.ended} - {""}) > 1
    objectives, paths = results.objectives, results.manifest.search["parameters"]
    header = ["trial", "status", "rounds", *objectives, "test accuracy (%)", "CPU s", *paths]
    rows = [
        [
            f"{record.study if several else ''} {record.arm.removeprefix('trial ')}".strip(),
            record.status if results.keeps(record) else f"{record.status}, infeasible",
            str(record.outcome.rounds),
            *(_objective(name, value(record, name)) for name in objectives),
            _number(100 * record.metrics.get(ACCURACY, math.nan), ".2f"),
            _number(record.outcome.cpu_seconds, ".1f"),
            *(_leaf(record.config, path) for path in paths),
        ]
        for record in results.ended
    ]
    legend, limits = _LEGEND.format(first=objectives[0], objective=", ".join(objectives)), results.limits
    return Table("Trials", header, rows, legend + (_LIMITED.format(", ".join(limits)) if limits else ""), keys=2)


def write(results: Results) -> None:
    """Write `search.md` and `search.csv`."""
    table, manifest = search_table(results), results.manifest
    interim = [f"**{results.interim}**", ""] if results.interim else []
    lines = [f"# {manifest.experiment}: {manifest.question}", "", *interim, table.markdown(), *notes(results)]
    atomic_write(results.out / "search.md", ("\n".join(lines) + "\n").encode())
    text = io.StringIO()
    csv.writer(text).writerows([table.header, *table.rows])
    atomic_write(results.out / "search.csv", text.getvalue().encode())


def terminal_table(results: Results, width: int = WIDTH) -> str:
    """The best of the same as plain text."""
    manifest, table = results.manifest, search_table(results)
    best = replace(table, title=f"Trials, the best by {results.objectives[0]} first", rows=table.rows[:SHOWN])
    more = [f"and {len(table.rows) - SHOWN} more, in search.md\n"] * (len(table.rows) > SHOWN)
    shown = [best.text(width)] if best.rows else []
    interim = [f"{results.interim}\n"] if results.interim else []
    head = [*interim, f"{manifest.experiment}: {manifest.question}\n"]
    return "\n".join([*head, *shown, *more, *notes(results)]) + "\n"


def notes(results: Results) -> list[str]:
    """How many trials came to what, and how well what was looked at ranks them by test accuracy."""
    told = ", ".join(f"{count} trials {name}" for name, count in results.counts.items() if count)
    lines = [f"{told or 'No trial has ended yet'}."]
    lines += [
        f"Spearman's rho of {one.proxy} with test accuracy over {one.n} finished trials: {one.rho:+.2f}."
        for one in results.rankings
    ]
    lines.append(f"CPU time of all trials: {results.cpu_seconds:.0f} s.")
    return [*lines, *results.manifest.dataset.get("notes", ()), *results.manifest.notes]


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
    return _number(number, ".4g" if name.startswith(("time/", "memory/")) else ".4f")


def _number(number: float, form: str = ".4g") -> str:
    return "-" if math.isnan(number) else format(number, form)
