"""Sections common to the page of an experiment and the page of a search."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from condkd_ray.core.records import Record
from condkd_ray.report.figures.search import proxy_plot
from condkd_ray.report.figures.style import ArmStyles
from condkd_ray.report.page.elements import Bars, Code, Element, Rows, Section, Text
from condkd_ray.report.page.images import vector
from condkd_ray.report.page.summary import seconds
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import tested
from condkd_ray.report.tables import failures, teachers
from condkd_ray.report.tables.table import CPU, WALL, Table, mean_of, mean_text

MOST_BARS = 50
"""Largest number of bars of the section on cost; the table below them has all."""


def proxy(results: Results, styles: ArmStyles | None) -> Section:
    """Return the section on how well the objective, a proxy, ranks the trials by test score.

    Empty if fewer than two trials have both metrics.
    """
    metric, found, score = results.objectives[0], results.rankings, f"test {results.score.name}"
    drawn = vector(proxy_plot(tested(results.records), metric, styles), f"{metric} against {score}")
    words: list[Element] = []
    if found:
        rhos, trials = sorted(one.rho for one in found), sum(one.n for one in found)
        text = f"Spearman's rho of {metric} with {score}: {rhos[0]:+.2f} over {trials} trials of one proxy set."
        if len(rhos) > 1:
            text = (
                f"Spearman's rho of {metric} with {score} within a proxy set: median {median(rhos):+.2f}, "
                f"{rhos[0]:+.2f} to {rhos[-1]:+.2f} over {len(rhos)} proxy sets, {trials} trials."
            )
        words = [Text(text)]
    elif drawn:
        words = [Text("No rho: fewer than four trials share a proxy set, or all values are equal.")]
    note = "All choices are made by the proxy alone. Points of different proxy sets are not on a common scale."
    return Section(f"Proxy against {score}", [*words, *drawn, Text(note, small=True)] if drawn else [])


def cost(groups: Mapping[str, Sequence[Record]]) -> Section:
    """Return the section on cost: mean seconds of each phase of a trial, a row per group. `groups`: trials by label."""
    kept = {label: members for label, members in groups.items() if members}
    metrics = sorted({key for members in kept.values() for one in members for key in one.metrics if _phase(key)})
    totals = {label: [_mean(members, metric) for metric in metrics] for label, members in kept.items()}
    longest = max((math.fsum(row) for row in totals.values()), default=0.0)
    if not longest:
        return Section("Cost by phase", [])
    bars = [(label, [100 * part / longest for part in row], seconds(math.fsum(row))) for label, row in totals.items()]
    phases = [_phase(metric) for metric in metrics]
    header = ["trials", "n", *(f"{phase} (s)" for phase in phases), "wall (s)", "CPU (s)"]
    rows = [
        [
            label,
            str(len(kept[label])),
            *(f"{part:.2f}" for part in row),
            *(mean_text(mean_of(kept[label], metric), None, deviation=False) for metric in (WALL, CPU)),
        ]
        for label, row in totals.items()
    ]
    waiting = " Cluster: waiting for Ray." if "cluster" in phases else ""
    legend = f"Means over the trials, all rounds together; wall-clock time of each phase.{waiting}"
    more = [Text(f"{len(bars) - MOST_BARS} more in the table.", small=True)] if len(bars) > MOST_BARS else []
    return Section("Cost by phase", [Bars(phases, bars[:MOST_BARS]), *more, Rows(Table("Cost", header, rows, legend))])


def failed_trials(results: Results) -> Section:
    """Return the section on failed trials: names, reasons, and the commands that run them again."""
    wrong = failures.screen(results)
    return Section("Failures", [Code(wrong.rstrip())] if wrong else [])


def repeat(results: Results) -> Section:
    """Return the section on repeating the run: its command, versions, machines and hashes."""
    manifest = results.manifest
    hashed = [("data", manifest.dataset), *(("teacher", teacher) for teacher in teachers.listed(manifest))]
    rows = [[key, text] for key, text in environment(results.records).items()]
    rows += [[f"{kind} hash", str(tree["hash"])] for kind, tree in hashed if tree.get("hash")]
    rows += [["started", manifest.created]]
    words = "The same command with the same versions on the same kind of machine gives equal numbers, except times."
    table = Table("Environment", ["", "of the trials"], rows, "", keys=1)
    return Section("Repeat it", [Code(manifest.command), Text(words, small=True), Rows(table, most=99)])


def environment(records: Sequence[Record]) -> dict[str, str]:
    """Return versions, node and threads of the trials as text, by name; differing values with numbers of trials."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        about = {
            **record.versions,
            **record.plugins,
            "git": record.git,
            "numbers": str(record.numbers),
            "node": record.outcome.node,
            "threads": str(record.outcome.threads),
        }
        for key, value in about.items():
            if value:
                seen[key][value] += 1
    return {key: _values(counts) for key, counts in seen.items()}


def _values(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count} trials)" for value, count in sorted(counts.items()))


def _phase(metric: str) -> str:
    """Return the phase that a metric times; "" for any other metric and for the time of all phases."""
    timed = re.fullmatch("time/(.+)_seconds", metric)
    return timed[1] if timed and metric not in (WALL, CPU) else ""


def _mean(members: Sequence[Record], metric: str) -> float:
    found = mean_of(members, metric)
    return found.mean if found else 0.0
