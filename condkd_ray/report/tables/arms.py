"""The result as tables: Markdown to read, CSV to compute with, plain text for the terminal's end.

All three show the same rows. Markdown and text are in percent and percentage points; the CSV is in fractions.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from condkd_ray.core.files import atomic_write
from condkd_ray.core.records import Manifest, Record
from condkd_ray.report import significance
from condkd_ray.report.statistics import ACCURACY, Difference, comparisons, groups, rankings, spread
from condkd_ray.report.tables import failures, teachers
from condkd_ray.report.tables.rounds import places_table, rounds_table
from condkd_ray.report.tables.table import WIDTH, Table, count, over, shown

_CSV_HEADER = ("table", "arm", "minus", "ipc", "metric", "mean", "std", "n", "low", "high", "method")
_PERCENT = {
    "student/val_accuracy": "validation (%)",
    "proxy/agreement": "proxy agreement (%)",
}
_LEGEND = (
    "Mean ± standard deviation over n seeds. Test accuracy is that of the last round on the whole test set; validation "
    "as measured while training."
)
_INTERVALS = (
    "Differences are paired by seed, in percentage points. The first interval is over seeds (another seed, with the "
    "same teachers), the second over test images at these seeds (another test set); both 95 %, not corrected for the "
    "number of comparisons. Over seeds: paired t with n - 1 degrees of freedom (df); where differences are skewed it "
    "covers less than 95 %. Over test images: adjusted Wald of Bonett and Price."
)
_HOLM = (
    "p is that of the paired t test over seeds, corrected by Holm for all arms that are compared with the same one at "
    "the same IPC: below 0.05 the difference is no chance find among them."
)


def write(out: Path, records: Sequence[Record], manifest: Manifest) -> None:
    """Write `table.md` and `table.csv` under `out`."""
    differences = comparisons(records, manifest.test_labels, baseline=manifest.baseline)
    atomic_write(Path(out) / "table.md", _markdown(records, manifest, differences, Path(out)).encode())
    atomic_write(Path(out) / "table.csv", _csv(records, manifest, differences).encode())


def terminal_table(records: Sequence[Record], manifest: Manifest, width: int = WIDTH) -> str:
    """What the Markdown shows, less the table of rounds, as plain text."""
    differences = comparisons(records, manifest.test_labels, baseline=manifest.baseline)
    places = places_table(records)
    tables = [accuracy_table(records), difference_table(differences), *_by_teacher(records, differences), places]
    parts = [table.text(width) for table in tables if table.rows]
    parts += [textwrap.fill(places.legend, min(width, WIDTH)) + "\n"] if places.rows else []
    return "\n".join([f"{manifest.experiment}: {manifest.question}\n", *parts, *notes(records, manifest)]) + "\n"


def accuracy_table(records: Sequence[Record]) -> Table:
    """A row an arm and IPC that has begun. Columns that nobody measured, or no trial failed, are left out."""
    found = groups(record for record in records if record.status != "running")
    done = {key: [record for record in members if record.status == "finished"] for key, members in found.items()}
    columns: dict[str, Callable[[tuple[str, int]], str]] = {
        "arm": lambda key: key[0],
        "IPC": lambda key: str(key[1] or "-"),
        "n": lambda key: str(count(done[key])),
        "test accuracy (%)": lambda key: _percent(done[key], ACCURACY),
    }
    for metric, name in _PERCENT.items():
        if any(metric in record.metrics for members in done.values() for record in members):
            columns[name] = lambda key, metric=metric: _percent(done[key], metric)
    columns["CPU s a trial"] = lambda key: _seconds(done[key])
    for status in ("failed", "pruned"):
        if any(record.status == status for record in records):
            columns[status] = lambda key, status=status: str(sum(r.status == status for r in found[key]))
    rows = [[show(key) for show in columns.values()] for key in found]
    return Table("Accuracy", list(columns), rows, _LEGEND)


def difference_table(differences: Sequence[Difference]) -> Table:
    """A row a comparison and IPC."""
    corrected = significance.corrected(differences)
    told = any(p is not None for p in corrected)
    p_header = ["p (Holm)"] if told else []
    header = ["difference", "IPC", "n", "points", "95 % over seeds", *p_header, "method", "95 % over test images"]
    rows = [
        [
            f"{one.left} - {one.right}",
            str(one.ipc or "-"),
            str(one.n),
            _signed(one.mean) + ("" if one.std is None else f" ± {100 * one.std:.2f}"),
            _range(one.low, one.high),
            *([significance.told(p)] if told else []),
            one.method,
            _range(one.image_low, one.image_high),
        ]
        for one, p in zip(differences, corrected, strict=True)
    ]
    return Table("Paired differences in test accuracy", header, rows, f"{_INTERVALS} {_HOLM}" if told else _INTERVALS)


def notes(records: Sequence[Record], manifest: Manifest) -> list[str]:
    """Teachers, progress, pruned trials, cost, how the proxy ranked, and what the manifest says; a sentence each."""
    finished = sum(record.status == "finished" for record in records)
    planned = len(manifest.planned) or len(records)
    lines = [_data(manifest), *teachers.lines(records, manifest)]
    lines += [f"{finished} of {planned} planned trials have finished."]
    lines += [
        f"Trial {one.arm}, IPC {one.ipc or '-'}, seed {one.seed} pruned: {one.outcome.reason or 'no reason stored'}"
        for one in records
        if one.status == "pruned"
    ]
    spent = math.fsum(record.outcome.cpu_seconds for record in records if math.isfinite(record.outcome.cpu_seconds))
    lines.append(f"CPU time of all trials: {spent:.0f} s.")
    if manifest.cpu_seconds is not None:
        lines.append(f"CPU time of the last run as a whole: {manifest.cpu_seconds:.0f} s.")
    lines += [
        f"Spearman's correlation of {one.proxy} with test accuracy: {one.rho:+.2f} "
        f"(n = {one.n} trials of one proxy set, IPC {', '.join(str(ipc or '-') for ipc in one.ipcs)})."
        for one in rankings(records)
    ]
    # A reason may be a traceback's last lines; a note is one line.
    told = [*lines, *manifest.dataset.get("notes", ()), *manifest.notes]
    return [" ".join(line.split()) for line in told if line]


def _by_teacher(records: Sequence[Record], differences: Sequence[Difference]) -> list[Table]:
    """Without rows where no arm has several teachers."""
    return [teachers.accuracy_table(records), teachers.difference_table(records, differences)]


def _markdown(records: Sequence[Record], manifest: Manifest, differences: Sequence[Difference], out: Path) -> str:
    tables = [accuracy_table(records), difference_table(differences), *_by_teacher(records, differences)]
    tables += [rounds_table(records), places_table(records)]
    body = "\n".join(table.markdown() for table in tables if table.rows)
    listed = "\n".join(f"- {line}" for line in notes(records, manifest))
    head = f"# {manifest.experiment}\n\n{manifest.question}\n\n`{manifest.command}`\n\n"
    wrong = failures.screen(records, manifest, out)
    trouble = f"\n\n## Failed trials\n\n```\n{wrong}```" if wrong else ""
    return f"{head}{body or 'No trial has ended yet.'}\n\n## Notes\n\n{listed}{trouble}\n"


def _csv(records: Sequence[Record], manifest: Manifest, differences: Sequence[Difference]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    writer.writerows(_accuracy_rows(records))
    for one in differences:
        row = ("difference", one.left, one.right, one.ipc, ACCURACY, one.mean, one.std, one.n)
        writer.writerow((*row, one.low, one.high, one.method))
        method = f"adjusted Wald, {len(manifest.test_labels)} test images"
        if one.image_low is not None:
            writer.writerow((*row, one.image_low, one.image_high, method))
    return buffer.getvalue()


def _accuracy_rows(records: Sequence[Record]) -> Iterator[tuple[object, ...]]:
    """Of each arm and IPC every metric, and of each teacher's students test accuracy where there are several."""
    for (arm, ipc), members in groups(record for record in records if record.status == "finished").items():
        measured = {metric for record in members for metric in record.metrics}
        found = {metric: over(members, metric) for metric in sorted(measured)}
        found["cpu_seconds"] = spread(record.outcome.cpu_seconds for record in members)
        found["wall_seconds"] = spread(record.outcome.wall_seconds for record in members)
        for metric, one in found.items():
            if one is not None:
                yield "accuracy", arm, "", ipc, metric, one.mean, one.std, one.n, "", "", ""
    for name, apart in teachers.by_teacher(records).items():
        for (arm, ipc), members in groups(apart).items():
            if (one := over(members, ACCURACY)) is not None:
                yield f"accuracy, {name}", arm, "", ipc, ACCURACY, one.mean, one.std, one.n, "", "", ""


def _data(manifest: Manifest) -> str:
    name = manifest.dataset.get("name")
    return f"Data {name}: {len(manifest.test_labels)} test images." if name else ""


def _percent(records: Sequence[Record], metric: str) -> str:
    return shown(over(records, metric), count(records), factor=100)


def _seconds(records: Sequence[Record]) -> str:
    return shown(spread(record.outcome.cpu_seconds for record in records), count(records), digits=1, deviation=False)


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
