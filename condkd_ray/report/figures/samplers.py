"""Comparison of samplers: how fast their searches find good trials, as best-so-far curves and areas between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from condkd_ray.core.records import Record, check_same_numbers, read_records
from condkd_ray.core.storage import atomic_write
from condkd_ray.core.task import CLASSIFICATION, Score
from condkd_ray.report.figures import style
from condkd_ray.report.statistics import interval, score_of
from condkd_ray.report.tables.table import Table
from condkd_ray.study.objective import Objective

Curves = Mapping[str, np.ndarray]
"""Best value up to each trial, shape (seeds, trials), by sampler."""


def compare(out: Path, searches: Mapping[str, Sequence[Sequence[Path]]], first: int, objective: Objective) -> str:
    """Write `samplers.png` and `samplers.md` to `out`; return the table as plain text.

    `searches`: by sampler, one list per seed with two folders: of the search of the `first` trials, common to all
    samplers, and of the sampler's own search. Raises `InputError` if their trials have different `numbers`, or if a
    record cannot be read.
    """
    name, direction = objective.names[0], objective.directions[0]
    found = {part: read_records(part) for folders in searches.values() for parts in folders for part in parts}
    check_same_numbers(found)
    curves, tested = {}, {}
    for sampler, folders in searches.items():
        lives = [[record for part in parts for record in in_order(found[part])] for parts in folders]
        curves[sampler] = np.stack([curve(life, name, direction) for life in lives])
        tested[sampler] = np.array([chosen(life, name, direction) for life in lives])
    score = score_of([record for records in found.values() for record in records])
    table = samplers_table(curves, tested, next(iter(searches)), first, name, score)
    draw(out / "samplers.png", curves, first, name)
    atomic_write(out / "samplers.md", table.markdown().encode())
    return table.text()


def in_order(records: Sequence[Record]) -> list[Record]:
    """Return the trials of a search in the order in which they were proposed."""
    return sorted(records, key=lambda record: int(record.arm.split()[-1]))


def curve(records: Sequence[Record], objective: str, direction: str) -> np.ndarray:
    """Return the best value up to each of these trials, shape (trials,). Unfinished trials do not change it.

    `direction`: "maximize" or "minimize".
    """
    best = np.fmax if direction == "maximize" else np.fmin
    return best.accumulate([_ended(record, objective) for record in records])


def chosen(records: Sequence[Record], objective: str, direction: str) -> float:
    """Return the test score (a fraction) of the trial with the best objective, or of the earliest such trial."""
    sign = -1 if direction == "maximize" else 1
    best = min(records, key=lambda record: np.nan_to_num(sign * _ended(record, objective), nan=np.inf))
    return _ended(best, score_of(records).test)


def _ended(record: Record, metric: str) -> float:
    return record.metrics.get(metric, np.nan) if record.status == "finished" else np.nan


def area(left: np.ndarray, right: np.ndarray, first: int) -> np.ndarray:
    """Return, per seed, the mean of `left` minus `right` over the trials after the common first ones.

    `left`, `right`: best values (seeds, trials). `first`: number of the common first trials.
    """
    return (left - right)[:, first:].mean(1)


def samplers_table(
    curves: Curves, tested: Curves, baseline: str, first: int, objective: str, score: Score = CLASSIFICATION
) -> Table:
    """Return a table with a row per sampler: best value, area above the baseline's curve, test score of the choice.

    `tested`: test score of the chosen trial, shape (seeds,), by sampler.
    """
    header = ["sampler", "n", "best", f"area above {baseline}", f"test {score.name} (%)", f"minus {baseline}'s"]
    rows = [
        [
            name,
            str(len(found)),
            _spread(found[:, -1]),
            "" if name == baseline else _paired(area(found, curves[baseline], first)),
            _spread(100 * tested[name]),
            "" if name == baseline else _paired(100 * (tested[name] - tested[baseline])),
        ]
        for name, found in curves.items()
    ]
    trials = next(iter(curves.values())).shape[1]
    legend = (
        f"Best {objective} after {trials} trials; the first {first} are random ones common to all samplers. Area: mean "
        f"over the other trials of the best so far minus {baseline}'s. Test {score.name}: that of the trial with the "
        "best objective. Mean and standard deviation over seeds; 95 % intervals, paired by seed."
    )
    return Table("Samplers", header, rows, legend, keys=1)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} ± {style.deviation(values):.2g}"


def _paired(differences: np.ndarray) -> str:
    ends, method = interval(differences)
    shown = "{:+.3g} to {:+.3g}, {}".format(*ends, method) if ends else method
    return f"{differences.mean():+.3g} ({shown})"


@style.styled
def draw(path: Path, curves: Curves, first: int, objective: str) -> None:
    """Write a figure with a thin line per seed and a thick one for their mean; the common first trials are shaded."""
    styles = style.arm_styles(curves)
    figure, (axes,) = style.canvas(3.0)
    labels = []
    for name, found in curves.items():
        numbers, (color, _) = np.arange(1, found.shape[1] + 1), styles[name]
        axes.plot(numbers, found.T, color=color, lw=0.5, alpha=0.4, drawstyle="steps-post")
        axes.plot(numbers, found.mean(0), color=color, lw=1.6, drawstyle="steps-post")
        labels.append(style.Label(axes, numbers[-1], found[:, -1].mean(), name, color))
    axes.axvspan(1, first, color="#EEEEEE", lw=0)
    axes.set(xlabel="trials", ylabel=f"best {objective} so far", xlim=(1, None))
    style.whole_numbers(axes)
    seeds = len(next(iter(curves.values())))
    caption = f"Thin: each of {seeds} seeds; thick: their mean. Shaded: random trials common to all samplers."
    style.save(path, style.finished(figure, caption, labels))
