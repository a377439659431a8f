"""The result as tables: Markdown to read, CSV to compute with, plain text for the terminal's end.

All three show the same rows. Markdown and text are in percent and percentage points; the CSV is in fractions.
"""

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence

from condkd_ray.core.storage import atomic_write
from condkd_ray.report import significance
from condkd_ray.report.results import Results
from condkd_ray.report.significance import Judged
from condkd_ray.report.statistics import ACCURACY, groups
from condkd_ray.report.tables import failures, teachers
from condkd_ray.report.tables.rounds import places_table, rounds_table
from condkd_ray.report.tables.table import CPU, WALL, WIDTH, Table, between, compared, count, over, place, shown, signed

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


def write(results: Results) -> None:
    """Write `table.md` and `table.csv`."""
    atomic_write(results.out / "table.md", _markdown(results).encode())
    atomic_write(results.out / "table.csv", _csv(results).encode())


def terminal_table(results: Results, width: int = WIDTH) -> str:
    """What the Markdown shows, less the table of rounds, as plain text."""
    places = places_table(results)
    parts = [table.text(width) for table in [*_tables(results), places] if table.rows]
    parts += [textwrap.fill(places.legend, min(width, WIDTH)) + "\n"] if places.rows else []
    head = f"{results.manifest.experiment}: {results.manifest.question}\n"
    return "\n".join([head, *parts, *notes(results)]) + "\n"


def accuracy_table(results: Results) -> Table:
    """A row an arm and IPC that has begun. Columns that nobody measured, or no trial failed, are left out."""
    found = groups(record for record in results.records if record.status != "running")
    measured = {metric for record in results.finished for metric in record.metrics}
    percent = {ACCURACY: "test accuracy (%)"} | {
        metric: name for metric, name in _PERCENT.items() if metric in measured
    }
    lost = [status for status in ("failed", "pruned") if results.counts[status]]
    rows = []
    for key, begun in found.items():
        done = results.groups.get(key, [])
        n = count(done)
        accuracies = [shown(over(done, metric), n, factor=100) for metric in percent]
        seconds = shown(over(done, CPU), n, digits=1, deviation=False)
        counts = [str(sum(record.status == status for record in begun)) for status in lost]
        rows.append([*place(*key), str(n), *accuracies, seconds, *counts])
    header = ["arm", "IPC", "n", *percent.values(), "CPU s a trial", *lost]
    return Table("Accuracy", header, rows, _LEGEND)


def difference_table(found: Sequence[Judged]) -> Table:
    """A row a comparison and IPC."""
    told = any(p is not None for _, p in found)
    p_header = ["p (Holm)"] if told else []
    header = ["difference", "IPC", "n", "points", "95 % over seeds", *p_header, "method", "95 % over test images"]
    rows = [
        [
            *compared(one),
            str(one.n),
            signed(one),
            between(one.low, one.high),
            *([significance.told(p)] if told else []),
            one.method,
            between(one.image_low, one.image_high),
        ]
        for one, p in found
    ]
    return Table("Paired differences in test accuracy", header, rows, f"{_INTERVALS} {_HOLM}" if told else _INTERVALS)


def notes(results: Results) -> list[str]:
    """Teachers, progress, pruned trials, cost, how the proxy ranked, and what the manifest says; a sentence each."""
    manifest = results.manifest
    name = manifest.dataset.get("name")
    lines = [f"Data {name}: {len(manifest.test_labels)} test images." if name else "", *teachers.lines(results)]
    lines.append(f"{len(results.finished)} of {results.planned} planned trials have finished.")
    lines += [
        f"Trial {one.arm}, IPC {one.ipc or '-'}, seed {one.seed} pruned: {one.outcome.reason or 'no reason stored'}"
        for one in results.of("pruned")
    ]
    lines.append(f"CPU time of all trials: {results.cpu_seconds:.0f} s.")
    if manifest.cpu_seconds is not None:
        lines.append(f"CPU time of the last run as a whole: {manifest.cpu_seconds:.0f} s.")
    lines += [
        f"Spearman's correlation of {one.proxy} with test accuracy: {one.rho:+.2f} "
        f"(n = {one.n} trials of one proxy set, IPC {', '.join(str(ipc or '-') for ipc in one.ipcs)})."
        for one in results.rankings
    ]
    # A reason may be a traceback's last lines; a note is one line.
    told = [*lines, *manifest.dataset.get("notes", ()), *manifest.notes]
    return [" ".join(line.split()) for line in told if line]


def _tables(results: Results) -> list[Table]:
    """Those of each teacher are without rows where no arm has several teachers."""
    by_teacher = [teachers.accuracy_table(results), teachers.difference_table(results)]
    return [accuracy_table(results), difference_table(results.judged), *by_teacher]


def _markdown(results: Results) -> str:
    manifest, tables = results.manifest, [*_tables(results), rounds_table(results), places_table(results)]
    body = "\n".join(table.markdown() for table in tables if table.rows)
    listed = "\n".join(f"- {line}" for line in notes(results))
    head = f"# {manifest.experiment}\n\n{manifest.question}\n\n`{manifest.command}`\n\n"
    wrong = failures.screen(results)
    trouble = f"\n\n## Failed trials\n\n```\n{wrong}```" if wrong else ""
    return f"{head}{body or 'No trial has ended yet.'}\n\n## Notes\n\n{listed}{trouble}\n"


def _csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    writer.writerows(_accuracy_rows(results))
    for one, _ in results.judged:
        row = ("difference", one.left, one.right, one.ipc, ACCURACY, one.mean, one.std, one.n)
        writer.writerow((*row, one.low, one.high, one.method))
        method = f"adjusted Wald, {len(results.manifest.test_labels)} test images"
        if one.image_low is not None:
            writer.writerow((*row, one.image_low, one.image_high, method))
    return buffer.getvalue()


def _accuracy_rows(results: Results) -> Iterator[tuple[object, ...]]:
    """Of each arm and IPC every metric, and of each teacher's students test accuracy where there are several."""
    for (arm, ipc), members in results.groups.items():
        measured = {metric for record in members for metric in record.metrics}
        found = {metric: over(members, metric) for metric in sorted(measured)}
        found |= {"cpu_seconds": over(members, CPU), "wall_seconds": over(members, WALL)}
        for metric, one in found.items():
            if one is not None:
                yield "accuracy", arm, "", ipc, metric, one.mean, one.std, one.n, "", "", ""
    for name, apart in results.by_teacher.items():
        for (arm, ipc), members in groups(apart).items():
            if (one := over(members, ACCURACY)) is not None:
                yield f"accuracy, {name}", arm, "", ipc, ACCURACY, one.mean, one.std, one.n, "", "", ""
