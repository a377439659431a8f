"""TensorBoard files of an experiment: a run per trial, in the HParams tab from its start; at the end, one per arm."""

import math
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch.utils.tensorboard.summary import custom_scalars, text

from condkd_ray.core.config import flattened
from condkd_ray.core.records import Record, record_path
from condkd_ray.core.task import CLASSIFICATION, Score
from condkd_ray.report.figures import image_grids
from condkd_ray.report.tables.table import Table
from condkd_ray.report.tensorboard import charts, embeddings, events
from condkd_ray.report.tensorboard.event_file import EventFile
from condkd_ray.report.tensorboard.events import Scalar

FOLDER = "tensorboard"
GRID = "samples/grid"
PAUSE = 1.0
"""Smallest number of seconds between two ended trials of a running experiment whose grid and embedding are written.

Our choice: when trials end faster, these would take a third of the driver's time, and nobody can look at them all.
`rebuild` writes them for all trials at the end.
"""
BASE = ("arm", "ipc", "seed", "condensation", "inversion", "guidance", "memory")


def measured(score: Score) -> tuple[str, ...]:
    """Return the metrics of the HParams tab; TensorBoard initially shows the first five."""
    first = (score.test, "proxy/agreement", "proxy/kl", score.val, "memory/bytes")
    return (*first, score.of("test", "mean"), "student/forgetting", *_ALWAYS)


_ALWAYS = (
    *("diagnosis/frechet_real", "diagnosis/frechet_condensed", "diagnosis/diversity"),
    *("time/inversion_seconds", "time/distillation_seconds", "time/evaluation_seconds"),
    *("time/wall_seconds", "time/cpu_seconds"),
)
METRICS = measured(CLASSIFICATION)


def run_name(record: Record) -> str:
    """Return a trial's run name: `ipc10/guided/seed0-1a2b3c`, or `none/seed0-1a2b3c` without condensed images.

    In the arm's name, characters with a meaning in regular expressions are removed and spaces become `-`, so that the
    name can be typed into TensorBoard's filter: `trial 7` becomes `trial-7`.
    """
    return f"{arm_name(record)}/seed{record.seed}-{record.config_hash[:6]}"


def arm_name(record: Record) -> str:
    """Return the common beginning of the run names of an arm and IPC: `ipc10/guided`."""
    arm = re.sub(r"[^\w.,=-]+", "-", re.sub(r"['\"()\[\]]", "", record.arm)).strip("-") or "-"
    return f"ipc{record.ipc}/{arm}" if record.ipc else arm


def varying(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the dotted names of the config fields whose values differ among the configs that have them.

    A field that only some configs have, with one value, is left out: it follows from the name of its method, which has
    a column.
    """
    first: dict[str, Scalar] = {}
    found = {
        name for config in configs for name, value in _flatten(config).items() if first.setdefault(name, value) != value
    }
    return beyond_base(sorted(found))


def beyond_base(names: Iterable[str]) -> list[str]:
    """Return the names without those already in the columns of `BASE`: method names, IPC and seed."""
    there = {*BASE, "condensation.ipc", *(f"{name}.name" for name in BASE)}
    return [name for name in names if name not in there]


def hparams(record: Record, names: Iterable[str] = ()) -> dict[str, Scalar]:
    """Return a trial's hyper-parameters: those of `BASE`, and the config fields in `names` that it has."""
    leaves = _flatten(record.config)
    return {name: getattr(record, name) for name in BASE} | {name: leaves[name] for name in names if name in leaves}


def bin_edges(name: str, bins: int) -> list[float]:
    """Return the edges of a histogram in `Record.held`: bins are centred on class numbers, or divide [0, 1] evenly."""
    return [number - 0.5 if name == "class" else number / bins for number in range(bins + 1)]


class EventFiles:
    """The event files of a running experiment in `out`/tensorboard, written by one process, the driver.

    The columns of the HParams tab and their types are fixed at the start, so that running trials have entries too.
    `planned`: the hyper-parameters of all planned trials, from `hparams`. `ranges`: bounds of the hyper-parameters
    whose values are not known at the start. `score`: score of the data's task. `pause`: see `PAUSE`. Times are seconds
    since 1970; None: now. TensorBoard shows the status of a run as unknown until the trial has finished.
    """

    def __init__(
        self,
        out: Path,
        planned: Sequence[Mapping[str, Scalar]] = (),
        ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
        score: Score = CLASSIFICATION,
        *,
        pause: float = PAUSE,
    ) -> None:
        self._pause, self._pictured = pause, -math.inf
        self._out, self._folder = Path(out), Path(out) / FOLDER
        self._columns = events.columns([_flatten(trial) for trial in planned], BASE) | events.intervals(ranges)
        self._writers: dict[str, EventFile] = {}
        self._latest: dict[str, tuple[int, Mapping[str, float]]] = {}
        # TensorBoard keeps only the first experiment in a tree, and new trials make the runs of arms outdated.
        for stale in self._folder.rglob("events.out.tfevents.*"):
            if not stale.parent.name.startswith("seed"):
                stale.unlink()
        self._root = EventFile(self._folder)
        self._root.add(events.experiment(self._columns, measured(score)))
        self._charts: set[str] = set()
        self._spread: set[str] = set()

    def trial_started(
        self,
        run: str,
        hparams: Mapping[str, Scalar],
        history: Sequence[Mapping[str, float]] = (),
        when: float | None = None,
    ) -> None:
        """Start a run, unless it is open; its old files are deleted. `history`: earlier rounds of a resumed trial."""
        if run in self._writers:
            return
        shutil.rmtree(self._folder / run, ignore_errors=True)
        self._latest.pop(run, None)
        self._writers[run] = EventFile(self._folder / run)
        now = time.time() if when is None else when
        self._writers[run].add(events.session_start(run, hparams, self._columns, now), when=now)
        for row in history:
            seconds = row.get("time/wall_seconds", 0.0)
            now += seconds if math.isfinite(seconds) else 0.0
            self.round(run, int(row["round"]), row, now)

    def round(self, run: str, step: int, metrics: Mapping[str, float], when: float | None = None) -> None:
        """Add a round's metrics. A round that was already written, for example before a resume, is skipped."""
        if run not in self._writers or step <= self._latest.get(run, (-1, {}))[0]:
            return
        self._writers[run].add(events.scalars(metrics), step, when)
        self.chart(metrics)
        self._latest[run] = (step, dict(metrics))

    def chart(self, metrics: Mapping[str, float]) -> None:
        """Add charts of the finite metrics that `charts.charted` selects and that have no chart yet."""
        fresh = charts.charted(name for name, value in metrics.items() if math.isfinite(value)) - self._charts
        if fresh:
            self._charts |= fresh
            # TensorBoard uses the last layout.
            self._root.add(custom_scalars(charts.layout(self._charts, self._spread)), len(self._charts))

    def arm(self, run: str, rows: Sequence[Mapping[str, float]], when: float | None = None) -> None:
        """Write a run of statistics over an arm's seeds. To get charts, call this before adding trials' scalars."""
        writer = EventFile(self._folder / run)
        for row in rows:
            writer.add(events.scalars(row), int(row["round"]), when)
            self._spread |= {name.partition("/")[2] for name in row if name != "round"}

    def table(self, table: Table) -> None:
        """Add a table to the Text tab of the whole experiment."""
        self._root.add(text(table.title, table.markdown()))

    def trial_finished(self, record: Record, when: float | None = None) -> None:
        """Add final metrics, histograms of the memory and status, and close the run.

        Also adds image grid and embedding, unless those of another trial were added less than `pause` seconds ago.

        Raises `InputError` if the trial's file of points is damaged.
        """
        run, now = run_name(record), time.time() if when is None else when
        self.trial_started(run, hparams(record, self._columns), record.history, when)
        writer = self._writers.pop(run)
        step, written = self._latest.pop(run, (record.outcome.rounds, {}))
        # The final metric differs from that of the last round if the round used a subset of the test images.
        final = {name: value for name, value in record.metrics.items() if written.get(name) != value}
        writer.add(events.scalars(final), step, now)
        self.chart(final)
        for name, counts in record.outcome.held.items():
            writer.add(events.histogram(f"memory/{name}", counts, bin_edges(name, len(counts))), step, now)
        if time.monotonic() - self._pictured >= self._pause:
            self._pictured = time.monotonic()
            if shown := image_grids.captioned(self._out, record):
                writer.add(events.image(GRID, image_grids.beside(shown)), step, now)
            embeddings.write_own(self._folder / run, self._out, record)
        writer.add(events.session_end(record.status, now), when=now)


def rebuild(out: Path, records: Sequence[Record], score: Score = CLASSIFICATION, tables: Sequence[Table] = ()) -> None:
    """Delete the folder and write it again from records, grids and points.

    `score`: score of the data's task. `tables`: tables for the Text tab; those without rows are left out. The end of
    a trial is the modification time of its record. Raises `InputError` if a file of points is damaged.
    """
    shutil.rmtree(Path(out) / FOLDER, ignore_errors=True)
    names = varying([record.config for record in records])
    files = EventFiles(out, [hparams(record, names) for record in records], score=score, pause=0.0)
    for table in tables:
        if table.rows:
            files.table(table)
    for record, rows in charts.over_seeds(records):
        files.arm(arm_name(record), rows)
    for row in (row for record in records for row in [*record.history, record.metrics]):
        files.chart(row)
    for record in records:
        path = record_path(out, record.config_hash)
        ended = path.stat().st_mtime if path.exists() else time.time()
        started = ended - (record.outcome.wall_seconds if math.isfinite(record.outcome.wall_seconds) else 0.0)
        files.trial_started(run_name(record), hparams(record, names), record.history, started)
        if record.status != "running":
            files.trial_finished(record, ended)
    embeddings.write_together(Path(out) / FOLDER, out, records)


def _flatten(tree: Mapping[str, Any]) -> dict[str, Scalar]:
    there = {name: value for name, value in flattened(tree, ".").items() if value is not None}
    return {name: one if isinstance(one, str | bool | int | float) else str(one) for name, one in there.items()}
