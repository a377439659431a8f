"""The tables of an experiment, in Markdown, in CSV, and as plain text for a terminal.

All are made from the same records. Markdown and text are in percent and percentage points, the CSV is in fractions. The
tables are: scores (accuracies or mean IoU), paired differences, each of these per teacher if there are several, in
segmentation the IoU of each class, statistics over the rounds with their cost, and the position of the synthetic images
in the teacher's feature space. The text has no table of the rounds. The CSV has scores, with one row per metric and
arm, and differences; the differences are not per teacher.
"""

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from condkd_ray.core.records import Record
from condkd_ray.core.storage import atomic_write
from condkd_ray.core.task import CLASSIFICATION, Score, is_dense
from condkd_ray.report.results import Results
from condkd_ray.report.statistics import Difference, groups
from condkd_ray.report.tables import classes, failures, teachers
from condkd_ray.report.tables.table import (
    CPU,
    WALL,
    WIDTH,
    Table,
    arm_cells,
    comparison_cells,
    count,
    interval_text,
    mean_of,
    mean_text,
    p_text,
    signed,
)

_CSV_HEADER = ("table", "arm", "minus", "ipc", "metric", "mean", "std", "n", "low", "high", "method")
_LEGEND = (
    "Mean ± standard deviation over n seeds. Test {name} is measured after the last round on the whole test set, "
    "validation {name} during training."
)
_IPC = " IPC is the number of condensed images in all, not of each class."
"""Sentence on `ipc` in segmentation, where an image has pixels of several classes."""
_INTERVALS = (
    "Differences are paired by seed, in percentage points. The first interval is over seeds (another seed, with the "
    "same teachers), the second over test images at these seeds (another test set); both are 95 % intervals, not "
    "corrected for the number of comparisons. Over seeds: paired t with n - 1 degrees of freedom (df); for skewed "
    "differences it covers less than 95 %. Over test images: adjusted Wald of Bonett and Price."
)
_OVER_SEEDS = (
    "Differences are paired by seed, in percentage points. The 95 % interval is over seeds (another seed, with the "
    "same teachers), not corrected for the number of comparisons: paired t with n - 1 degrees of freedom (df); for "
    "skewed differences it covers less than 95 %. There is no interval over test images, because the mean IoU is "
    "computed from the pixels of all test images together and predictions are not stored."
)
_HOLM = (
    "p is the p-value of the paired t test over seeds, corrected by Holm for all arms that are compared with the same "
    "arm at the same IPC: below 0.05, a difference this large would be unlikely if there were none."
)


@dataclass(frozen=True)
class _Column:
    header: str
    metric: str
    factor: float = 1.0
    digits: int = 3


_SUBSET = 1000
"""Largest number of test images measured per round by trials whose record has no `student/test_images`."""
_IMAGES = "student/test_images"
_NUM_IMAGES = "test images"
"""Header of the column whose cells hold the number of test images on which the metric was measured, not the metric."""
_ROUNDS = (
    _Column("forgetting (points)", "student/forgetting", 100, 2),
    _Column("memory (MB)", "memory/bytes", 1e-6, 2),
    _Column("D (%)", "guidance/accuracy", 100, 1),
    _Column("D, perfect fakes (%)", "guidance/perfect_accuracy", 100, 1),
    _Column("inversion (s)", "time/inversion_seconds", 1, 1),
    _Column("distillation (s)", "time/distillation_seconds", 1, 1),
)
_PLACES = (
    _Column("Frechet to real", "diagnosis/frechet_real"),
    _Column("to condensed", "diagnosis/frechet_condensed"),
    _Column("diversity", "diagnosis/diversity"),
    _Column("coverage", "diagnosis/coverage"),
    _Column("nearest guide", "diagnosis/nearest_guide"),
    _Column("MMD to real", "diagnosis/mmd_real"),
    _Column("MMD to condensed", "diagnosis/mmd_condensed"),
    _Column("confidence", "diagnosis/confidence"),
    _Column("gap", "diagnosis/gap"),
)
_ROUNDS_LEGEND = (
    (
        "student/test_",
        "Mean, variance and best of the test {name} over the measured rounds. The column test images gives the number "
        "of images per round: a fixed subset, or all (--test-rounds full), as in papers that report a mean over "
        "rounds. The best is only for comparison with papers; nothing may be chosen by it.",
    ),
    ("student/forgetting", "Forgetting is the best minus the last."),
    ("memory/bytes", "Memory is that at the end."),
    ("time/", "Times are those of the whole trial."),
    ("guidance/accuracy", "D: accuracy of the discriminator in the last round (50 is chance)."),
    (
        "guidance/perfect_accuracy",
        "Perfect fakes: its accuracy if the generated images were replaced by condensed images held out from its "
        "training.",
    ),
)
"""Beginnings of metrics, each with the sentence that explains the columns of these."""
_PLACES_LEGEND = (
    "Synthetic images of the last round in the teacher's feature space. Distances (Frechet, MMD) are measured class by "
    "class. Diversity (mean distance between two images of a class) and nearest guide (mean distance to the nearest "
    "condensed image) are relative to real images. Coverage: share of the guides with a synthetic image near them. "
    "Confidence: mean probability of the class that the teacher predicts. Gap: mean KL divergence of the student from "
    "the teacher. Compare arms only within a column, because the sets differ in size. Diversity and nearest guide "
    "below 1 mean a collapse onto the guides; guidance aims at a smaller distance to real images. For the report only: "
    "Frechet and MMD to real, diversity, coverage and nearest guide are computed with real training images. No "
    "inversion and no search reads these columns."
)


def write(results: Results) -> None:
    """Write `table.md` and `table.csv`."""
    atomic_write(results.out / "table.md", _markdown(results).encode())
    atomic_write(results.out / "table.csv", _csv(results).encode())


def terminal_table(results: Results, width: int = WIDTH) -> str:
    """Return all tables except the table of the rounds as plain text of `width` columns, with the notes."""
    places = places_table(results)
    parts = [table.text(width) for table in [*_tables(results), places] if table.rows]
    parts += [textwrap.fill(places.legend, min(width, WIDTH)) + "\n"] if places.rows else []
    head = f"{results.manifest.experiment}: {results.manifest.question}\n"
    interim = [f"{results.interim}\n"] if results.interim else []
    return "\n".join([*interim, head, *parts, *notes(results)]) + "\n"


def accuracy_table(results: Results) -> Table:
    """Return a table with a row per arm and IPC with an ended trial: accuracies, or mean IoU in segmentation.

    Columns without any value are left out, except the test score.
    """
    score = results.score
    columns = {
        score.test: f"test {score.name} (%)",
        score.val: "validation (%)",
        "proxy/agreement": "proxy agreement (%)",
    }
    found = groups(record for record in results.records if record.status != "running")
    measured = {metric for record in results.finished for metric in record.metrics}
    percent = {metric: name for metric, name in columns.items() if metric in measured or metric == score.test}
    lost = [status for status in ("failed", "pruned") if results.counts[status]]
    rows = []
    for key, ended in found.items():
        done = results.groups.get(key, [])
        n = count(done)
        accuracies = [mean_text(mean_of(done, metric), n, factor=100) for metric in percent]
        seconds = mean_text(mean_of(done, CPU), n, digits=1, deviation=False)
        counts = [str(sum(record.status == status for record in ended)) for status in lost]
        rows.append([*arm_cells(*key), str(n), *accuracies, seconds, *counts])
    header = ["arm", "IPC", "n", *percent.values(), "CPU s per trial", *lost]
    return Table(score.title, header, rows, _LEGEND.format(name=score.name) + _IPC * is_dense(score.task))


def difference_table(found: Sequence[Difference], score: Score = CLASSIFICATION) -> Table:
    """Return a table with a row per comparison and IPC; a column p if any comparison has a p value.

    In segmentation there is no column with intervals over test images.
    """
    dense = is_dense(score.task)
    corrected = any(one.p is not None for one in found)
    p_header = ["p (Holm)"] if corrected else []
    header = ["difference", "IPC", "n", "points", "95 % over seeds", *p_header, "method"]
    header += [] if dense else ["95 % over test images"]
    rows = [
        [
            *comparison_cells(one),
            str(one.n),
            signed(one),
            interval_text(one.over_seeds),
            *([p_text(one.p)] if corrected else []),
            one.method,
            *([] if dense else [interval_text(one.over_images)]),
        ]
        for one in found
    ]
    intervals = _OVER_SEEDS if dense else _INTERVALS
    legend = f"{intervals} {_HOLM}" if corrected else intervals
    return Table(f"Paired differences in test {score.name}", header, rows, legend)


def rounds_table(results: Results) -> Table:
    """Return a table with a row per arm and IPC: test score over the rounds, memory and times."""
    score = results.score
    columns = (
        _Column(_NUM_IMAGES, score.of("test", "mean")),
        _Column("mean (%)", score.of("test", "mean"), 100, 2),
        _Column("variance (points²)", score.of("test", "variance"), 1e4, 2),
        _Column("best (%)", score.of("test", "best"), 100, 2),
        *_ROUNDS,
    )
    measured = [column.metric for column in _measured_columns(columns, results)]
    sentences = [
        sentence.format(name=score.name)
        for beginning, sentence in _ROUNDS_LEGEND
        if any(metric.startswith(beginning) for metric in measured)
    ]
    return _table("Over the rounds", columns, " ".join(sentences), results)


def places_table(results: Results) -> Table:
    """Return a table with a row per arm and IPC with synthetic images: the diagnosis of the last measured round."""
    return _table("Where the synthetic images lie", _PLACES, _PLACES_LEGEND, results)


def test_images(records: Sequence[Record]) -> str:
    """Return the number of test images measured per round by these trials, such as `1 000 of 10 000`."""
    return " and ".join(_out_of(*pair) for pair in sorted({_measured(record) for record in records}))


def notes(results: Results) -> list[str]:
    """Return sentences on data, teachers, progress, pruned trials, cost and proxy, and the stored notes."""
    manifest = results.manifest
    name = manifest.dataset.get("name")
    lines = [f"Data {name}: {results.test_size} test images." if name else "", *teachers.lines(results)]
    lines.append(f"{len(results.finished)} of {results.planned} planned trials have finished.")
    lines += [
        f"Trial {one.arm}, IPC {one.ipc or '-'}, seed {one.seed} pruned: {one.outcome.reason or 'no reason stored'}"
        for one in results.of("pruned")
    ]
    lines.append(f"CPU time of all trials: {results.cpu_seconds:.0f} s.")
    if manifest.cpu_seconds is not None:
        lines.append(f"CPU time of the last run as a whole: {manifest.cpu_seconds:.0f} s.")
    lines += [
        f"Spearman's correlation of {one.proxy} with test {results.score.name}: {one.rho:+.2f} "
        f"(n = {one.n} trials of one proxy set, IPC {', '.join(str(ipc or '-') for ipc in one.ipcs)})."
        for one in results.rankings
    ]
    # A reason may hold several lines of a traceback; a note is one line.
    stored = [*lines, *manifest.dataset.get("notes", ()), *manifest.notes]
    return [" ".join(line.split()) for line in stored if line]


def _tables(results: Results) -> list[Table]:
    """Return the tables of scores and differences, over all teachers and per teacher, and of the IoU of each class.

    The tables per teacher have no rows unless arms have several teachers, and that of the IoU none in classification.
    """
    by_teacher = [teachers.accuracy_table(results), teachers.difference_table(results)]
    differences = difference_table(results.differences, results.score)
    return [accuracy_table(results), differences, *by_teacher, classes.iou_table(results)]


def _markdown(results: Results) -> str:
    manifest, tables = results.manifest, [*_tables(results), rounds_table(results), places_table(results)]
    body = "\n".join(table.markdown() for table in tables if table.rows)
    listed = "\n".join(f"- {line}" for line in notes(results))
    interim = f"**{results.interim}**\n\n" if results.interim else ""
    head = f"# {manifest.experiment}\n\n{interim}{manifest.question}\n\n`{manifest.command}`\n\n"
    wrong = failures.screen(results)
    failed = f"\n\n## Failed trials\n\n```\n{wrong}```" if wrong else ""
    return f"{head}{body or 'No trial has ended yet.'}\n\n## Notes\n\n{listed}{failed}\n"


def _csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    writer.writerows(_accuracy_rows(results))
    method = f"adjusted Wald, {len(results.manifest.test_labels)} test images"
    for one in results.differences:
        row = ("difference", one.left, one.right, one.ipc, results.score.test, one.mean, one.std, one.n)
        writer.writerow((*row, *(one.over_seeds or ("", "")), one.method))
        if one.over_images:
            writer.writerow((*row, *one.over_images, method))
    return buffer.getvalue()


def _accuracy_rows(results: Results) -> Iterator[tuple[object, ...]]:
    """Yield a row per arm, IPC and metric, and a row per teacher, arm and IPC if there are several teachers."""
    name, test = results.score.name, results.score.test
    for (arm, ipc), members in results.groups.items():
        measured = {metric for record in members for metric in record.metrics}
        found = {metric: mean_of(members, metric) for metric in sorted(measured)}
        found |= {"cpu_seconds": mean_of(members, CPU), "wall_seconds": mean_of(members, WALL)}
        for metric, one in found.items():
            if one is not None:
                yield name, arm, "", ipc, metric, one.mean, one.std, one.n, "", "", ""
    for teacher, apart in results.by_teacher.items():
        for (arm, ipc), members in groups(apart).items():
            if (one := mean_of(members, test)) is not None:
                yield f"{name}, {teacher}", arm, "", ipc, test, one.mean, one.std, one.n, "", "", ""


def _measured(record: Record) -> tuple[int, int]:
    """Return the number of test images measured per round, and the number of all test images; 0 if unknown."""
    number, total = record.metrics.get(_IMAGES, math.nan), len(record.outcome.predictions)
    return (min(_SUBSET, total) if math.isnan(number) else int(number)), total


def _out_of(number: int, total: int) -> str:
    if not number:
        return f"at most {_SUBSET}"
    part, whole = (f"{value:,}".replace(",", " ") for value in (number, total))
    if not total:
        return part
    return f"all {whole}" if number == total else f"{part} of {whole}"


def _table(title: str, columns: Sequence[_Column], legend: str, results: Results) -> Table:
    """Return a table without the columns and rows for which nothing was measured."""
    found = results.groups
    kept = _measured_columns(columns, results)
    rows = [
        [*arm_cells(arm, ipc), str(count(members)), *(_cell(members, column) for column in kept)]
        for (arm, ipc), members in found.items()
        if any(mean_of(members, column.metric) for column in kept)
    ]
    return Table(title, ["arm", "IPC", "n", *(column.header for column in kept)], rows, legend)


def _measured_columns(columns: Sequence[_Column], results: Results) -> list[_Column]:
    """Return the columns for which something was measured."""
    return [one for one in columns if any(mean_of(members, one.metric) for members in results.groups.values())]


def _cell(members: Sequence[Record], column: _Column) -> str:
    if column.header == _NUM_IMAGES:
        return test_images([record for record in members if mean_of([record], column.metric)]) or "-"
    return mean_text(mean_of(members, column.metric), count(members), factor=column.factor, digits=column.digits)
