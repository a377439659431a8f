"""Tables beside the accuracies: how the rounds went and what they cost, and where the synthetic images lie."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from condkd_ray.core.records import Record
from condkd_ray.report.results import Results
from condkd_ray.report.tables.table import Table, count, over, place, shown


@dataclass(frozen=True)
class _Column:
    header: str
    metric: str
    factor: float = 1.0
    digits: int = 3


_SUBSET = 1000
"""Test images measured in a round, at most, by trials whose record does not say how many they were."""
_MEAN, _IMAGES = "student/test_accuracy_mean", "student/test_images"
_ROUNDS = (
    _Column("mean (%)", _MEAN, 100, 2),
    _Column("variance (points²)", "student/test_accuracy_variance", 1e4, 2),
    _Column("best (%)", "student/test_accuracy_best", 100, 2),
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
    "Mean, variance and best of the test accuracy over the measured rounds. The column test images says on how many "
    "they were measured: a fixed subset, or all (--test-rounds full), as papers do that report a mean over rounds. The "
    "best is for comparison with papers only, nothing may be chosen by it. Forgetting is the best minus the last. "
    "Memory at the end, times of the whole trial."
)
_D_LEGEND = (
    " D: what the discriminator tells right in the last round (50 is chance); with perfect fakes: what it would where "
    "the generator's images were condensed images held out."
)
_PLACES_LEGEND = (
    "Synthetic images of the last round in the teacher's features; distances class by class, diversity and distance to "
    "the nearest guide (condensed image) in units of real images'. Compare arms within a column, as the sets differ in "
    "size. Less diversity and nearer to the guides than 1 is collapse onto them; a smaller distance to real images is "
    "what guidance is for. For the report only: all but the distances to condensed images, confidence and gap need "
    "real train images, and no method or search sees any."
)


def rounds_table(results: Results) -> Table:
    """A row an arm and IPC: over the rounds, memory and times."""
    legend = _ROUNDS_LEGEND + (_D_LEGEND if over(results.records, "guidance/accuracy") else "")
    return _table("Over the rounds", _ROUNDS, legend, results, {"test images": _on})


def places_table(results: Results) -> Table:
    """A row an arm and IPC that made synthetic images: what a diagnosis of the last measured round found."""
    return _table("Where the synthetic images lie", _PLACES, _PLACES_LEGEND, results, {})


def test_images(records: Sequence[Record]) -> str:
    """Of how many test images the rounds of these trials were measured, of how many there are: `1 000 of 10 000`."""
    return " and ".join(_told(*pair) for pair in sorted({_measured(record) for record in records}))


def _on(records: Sequence[Record]) -> str:
    """The same of those whose rounds were measured; a dash without any."""
    return test_images([record for record in records if over([record], _MEAN)]) or "-"


def _measured(record: Record) -> tuple[int, int]:
    """Test images measured in a round, and all of them; 0 where that is not known."""
    number, total = record.metrics.get(_IMAGES, math.nan), len(record.outcome.predictions)
    return (min(_SUBSET, total) if math.isnan(number) else int(number)), total


def _told(number: int, total: int) -> str:
    if not number:
        return f"at most {_SUBSET}"
    part, whole = (f"{value:,}".replace(",", " ") for value in (number, total))
    if not total:
        return part
    return f"all {whole}" if number == total else f"{part} of {whole}"


def _table(
    title: str,
    columns: Sequence[_Column],
    legend: str,
    results: Results,
    words: Mapping[str, Callable[[Sequence[Record]], str]],
) -> Table:
    """Without the columns, and the rows, of which nothing was measured; `words`: columns of text, by their headers."""
    found = results.groups
    kept = [one for one in columns if any(over(members, one.metric) for members in found.values())]
    spoken = {header: tell for header, tell in words.items() if any(tell(one) != "-" for one in found.values())}
    rows = [
        [
            *place(arm, ipc),
            str(count(members)),
            *(tell(members) for tell in spoken.values()),
            *(_cell(members, column) for column in kept),
        ]
        for (arm, ipc), members in found.items()
        if any(over(members, column.metric) for column in kept)
    ]
    return Table(title, ["arm", "IPC", "n", *spoken, *(column.header for column in kept)], rows, legend)


def _cell(members: Sequence[Record], column: _Column) -> str:
    return shown(over(members, column.metric), count(members), factor=column.factor, digits=column.digits)
