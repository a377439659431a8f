"""The tables of a search: its trials, best first, with the objectives and, separately, the test score."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from condkd_ray.core.config import flattened
from condkd_ray.core.storage import atomic_write
from condkd_ray.report.results import Results, value
from condkd_ray.report.tables.table import WIDTH, Table

SHOWN = 12
"""Largest number of best trials in the table for a terminal."""
_LEGEND = (
    "Best trial first, by {first}. The search used only {objective}. Test {score} was measured once per trial, after "
    "its result was in the study, and decides nothing: the highest of many trials is biased upwards."
)
_LIMITED = " Infeasible trials violate one of {}; they are never the best."


def search_table(results: Results) -> Table:
    """Return a table with a row per ended trial: objectives, test score, CPU seconds and the open leaves' values.

    If the folder has trials of several studies, each row names its study. A trial that is in several studies has one
    row.
    """
    several = len({record.study for record in results.ended} - {""}) > 1
    objectives, paths = results.objectives, results.manifest.search["parameters"]
    header = ["trial", "status", "rounds", *objectives, f"test {results.score.name} (%)", "CPU s", *paths]
    chosen = [_leaves([_leaf(record.config, path) for record in results.ended]) for path in paths]
    rows = [
        [
            f"{record.study if several else ''} {record.arm.removeprefix('trial ')}".strip(),
            record.status if results.keeps(record) else f"{record.status}, infeasible",
            str(record.outcome.rounds),
            *(_objective(name, value(record, name)) for name in objectives),
            _number(100 * record.metrics.get(results.score.test, math.nan), ".2f"),
            _number(record.outcome.cpu_seconds, ".1f"),
            *(texts[row] for texts in chosen),
        ]
        for row, record in enumerate(results.ended)
    ]
    names = {"first": objectives[0], "objective": ", ".join(objectives), "score": results.score.name}
    legend, limits = _LEGEND.format(**names), results.limits
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
    """Return the rows of the best trials and the notes as plain text. `width`: columns of the terminal."""
    manifest, table = results.manifest, search_table(results)
    best = replace(table, title=f"Trials, the best by {results.objectives[0]} first", rows=table.rows[:SHOWN])
    more = [f"and {len(table.rows) - SHOWN} more, in search.md\n"] * (len(table.rows) > SHOWN)
    shown = [best.text(width)] if best.rows else []
    interim = [f"{results.interim}\n"] if results.interim else []
    head = [*interim, f"{manifest.experiment}: {manifest.question}\n"]
    return "\n".join([*head, *shown, *more, *notes(results)]) + "\n"


def notes(results: Results) -> list[str]:
    """Return sentences on the numbers of trials, on their rank correlations and cost, and the stored notes."""
    counts = ", ".join(f"{count} trials {name}" for name, count in results.counts.items() if count)
    lines = [f"{counts or 'No trial has ended yet'}."]
    lines += [
        f"Spearman's rho of {one.proxy} with test {results.score.name} over {one.n} finished trials: {one.rho:+.2f}."
        for one in results.rankings
    ]
    lines.append(f"CPU time of all trials: {results.cpu_seconds:.0f} s.")
    return [*lines, *results.manifest.dataset.get("notes", ()), *results.manifest.notes]


def _leaf(config: Mapping[str, Any], path: str) -> Any:
    """Return the value of an open leaf in a trial's config; "" if the trial's method has no such leaf."""
    found: Any = config
    for key in path.split("/"):
        if isinstance(found, list):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return ""
    return found


def _leaves(values: Sequence[Any]) -> list[str]:
    """Return the values of an open leaf in all trials as text.

    Of a method it is the name, with the fields in which it differs from other trials' methods of the same name.
    """
    methods = [flattened(one) for one in values if isinstance(one, Mapping)]
    return [_method(flattened(one), methods) if isinstance(one, Mapping) else _text(one) for one in values]


def _method(own: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> str:
    name = own.get("name")
    alike = [one for one in methods if one.get("name") == name]
    differing = [key for key in own if any(key not in one or one[key] != own[key] for one in alike)]
    fields = ", ".join(f"{key} {_text(own[key])}" for key in differing)
    return f"{name} ({fields})" if name and fields else name or fields


def _text(found: Any) -> str:
    return _number(found) if isinstance(found, float) else str(found)


def _objective(name: str, number: float) -> str:
    """Return an objective as text: times and bytes with four significant digits, others with four decimals to align."""
    return _number(number, ".4g" if name.startswith(("time/", "memory/")) else ".4f")


def _number(number: float, form: str = ".4g") -> str:
    return "-" if math.isnan(number) else format(number, form)
