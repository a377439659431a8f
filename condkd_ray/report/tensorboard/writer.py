"""TensorBoard: a run a trial, comparable in the HParams tab from its first second; in the end also a run an arm."""

import math
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import custom_scalars

from condkd_ray.core.config import flattened
from condkd_ray.core.records import Record, record_path
from condkd_ray.report.figures import image_grids
from condkd_ray.report.tensorboard import charts, embeddings, events
from condkd_ray.report.tensorboard.events import Scalar

FOLDER = "tensorboard"
GRID = "samples/grid"
BASE = ("arm", "ipc", "seed", "condensation", "inversion", "guidance", "memory")
METRICS = (
    *("student/test_accuracy", "proxy/agreement", "proxy/kl", "student/val_accuracy", "memory/bytes"),
    *("student/test_accuracy_mean", "student/forgetting"),
    *("diagnosis/frechet_real", "diagnosis/frechet_condensed", "diagnosis/diversity"),
    *("time/inversion_seconds", "time/distillation_seconds", "time/evaluation_seconds"),
    *("time/wall_seconds", "time/cpu_seconds"),
)
"""Of these TensorBoard shows the first five, until told otherwise."""


def run_name(record: Record) -> str:
    """`ipc10/guided/seed0-1a2b3c`, or `none/seed0-1a2b3c` for an arm without condensed images.

    Of an arm's name what a regular expression would take for an operator is left out, and `-` stands for spaces:
    `trial 7` is `trial-7`, so that what is typed into TensorBoard's filter finds it.
    """
    return f"{arm_name(record)}/seed{record.seed}-{record.config_hash[:6]}"


def arm_name(record: Record) -> str:
    """What the run names of all seeds of an arm and IPC begin with: `ipc10/guided`."""
    arm = re.sub(r"[^\w.,=-]+", "-", re.sub(r"['\"()\[\]]", "", record.arm)).strip("-") or "-"
    return f"ipc{record.ipc}/{arm}" if record.ipc else arm


def varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the leaves in which the configuration trees that have them differ.

    A leaf that only some have, and all alike, tells no more than the method it belongs to, which is a column already.
    """
    flat = [_flatten(config) for config in configs]
    names = sorted({name for leaves in flat for name in leaves})
    return [name for name in beyond_base(names) if len({leaves[name] for leaves in flat if name in leaves}) > 1]


def beyond_base(names: Iterable[str]) -> list[str]:
    """Those of the leaves that `BASE` does not have as columns already: kinds, IPC and seed it has."""
    there = {*BASE, "condensation.ipc", *(f"{name}.name" for name in BASE)}
    return [name for name in names if name not in there]


def hparams(record: Record, names: Iterable[str] = ()) -> dict[str, Scalar]:
    """A trial as a flat dict: `BASE`, and the named leaves of its configuration as far as it has them."""
    leaves = _flatten(record.config)
    return {name: getattr(record, name) for name in BASE} | {name: leaves[name] for name in names if name in leaves}


def bin_edges(name: str, bins: int) -> list[float]:
    """Where the bins of a histogram in `Record.held` begin and end: classes at their numbers, confidences in [0, 1]."""
    return [number - 0.5 if name == "class" else number / bins for number in range(bins + 1)]


class EventFiles:
    """Event files of a running experiment under `out`/tensorboard. One process writes them, the driver.

    `planned`: the hyper-parameters of every trial to come, as `hparams` gives them. The columns of the HParams tab and
    their types are made from these once, so that running trials stand there too; and from `ranges`, in which those that
    nobody knows yet will lie. Times are seconds since 1970.
    """

    def __init__(
        self,
        out: Path,
        planned: Sequence[Mapping[str, Scalar]] = (),
        ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        self._out, self._folder = Path(out), Path(out) / FOLDER
        self._columns = events.columns([_flatten(trial) for trial in planned], BASE) | events.intervals(ranges)
        self._writers: dict[str, FileWriter] = {}
        self._latest: dict[str, tuple[int, Mapping[str, float]]] = {}
        # One experiment a tree: tensorboard keeps the first it finds. What is over seeds lacks those to come.
        for stale in self._folder.rglob("events.out.tfevents.*"):
            if not stale.parent.name.startswith("seed"):
                stale.unlink()
        self._root = _opened(self._folder)
        self._root.add_summary(events.experiment(self._columns, METRICS))
        self._root.flush()
        self._charts: set[str] = set()
        self._spread: set[str] = set()

    def trial_started(
        self,
        run: str,
        hparams: Mapping[str, Scalar],
        history: Sequence[Mapping[str, float]] = (),
        when: float | None = None,
    ) -> None:
        """Open a run afresh, unless it is open. `history`: the rounds so far of a trial that resumes."""
        if run in self._writers:
            return
        shutil.rmtree(self._folder / run, ignore_errors=True)
        self._latest.pop(run, None)
        self._writers[run] = _opened(self._folder / run)
        now = time.time() if when is None else when
        self._writers[run].add_summary(events.session_start(run, hparams, self._columns, now), walltime=now)
        for row in history:
            seconds = row.get("time/wall_seconds", 0.0)
            now += seconds if math.isfinite(seconds) else 0.0
            self.round(run, int(row["round"]), row, now)

    def round(self, run: str, step: int, metrics: Mapping[str, float], when: float | None = None) -> None:
        """Add a round's metrics. A round already written, as after a resume, is not written twice."""
        if run not in self._writers or step <= self._latest.get(run, (-1, {}))[0]:
            return
        self._writers[run].add_summary(events.scalars(metrics), step, when)
        self.chart(metrics)
        self._latest[run] = (step, dict(metrics))

    def chart(self, metrics: Mapping[str, float]) -> None:
        """See that there is a chart of each of these scalars that is finite and telling."""
        fresh = charts.telling(name for name, value in metrics.items() if math.isfinite(value)) - self._charts
        if fresh:
            self._charts |= fresh
            # Of several layouts TensorBoard takes the last.
            self._root.add_summary(custom_scalars(charts.layout(self._charts, self._spread)), len(self._charts))

    def arm(self, run: str, rows: Sequence[Mapping[str, float]], when: float | None = None) -> None:
        """Write a run over the seeds of an arm; to be charted, before any scalar of a trial."""
        writer = _opened(self._folder / run)
        for row in rows:
            writer.add_summary(events.scalars(row), int(row["round"]), when)
            self._spread |= {name.partition("/")[2] for name in row if name != "round"}
        _close(writer)

    def trial_finished(self, record: Record, when: float | None = None) -> None:
        """Add final metrics, what the memory held, what is there of images and embedding, and the status; close."""
        run, now = run_name(record), time.time() if when is None else when
        self.trial_started(run, hparams(record, self._columns), record.history, when)
        writer = self._writers.pop(run)
        step, written = self._latest.get(run, (record.outcome.rounds, {}))
        # The last round may have measured a subset of the test images; an equal value stands there already.
        final = {name: value for name, value in record.metrics.items() if written.get(name) != value}
        writer.add_summary(events.scalars(final), step, now)
        self.chart(final)
        for name, counts in record.outcome.held.items():
            writer.add_summary(events.histogram(f"memory/{name}", counts, bin_edges(name, len(counts))), step, now)
        if shown := image_grids.captioned(self._out, record):
            writer.add_summary(events.image(GRID, image_grids.beside(shown)), step, now)
        embeddings.write_own(self._folder / run, self._out, record)
        writer.add_summary(events.session_end(record.status, now), walltime=now)
        _close(writer)

    def close(self) -> None:
        """Close all runs; those still open stay without an end, which TensorBoard shows as unknown."""
        for writer in [self._root, *self._writers.values()]:
            _close(writer)
        self._writers.clear()


def rebuild(out: Path, records: Sequence[Record]) -> None:
    """Delete the folder and write it again from records and grids. The end of a trial is the time of its file."""
    shutil.rmtree(Path(out) / FOLDER, ignore_errors=True)
    names = varying([record.config for record in records])
    files = EventFiles(out, [hparams(record, names) for record in records])
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
    files.close()
    embeddings.write_together(Path(out) / FOLDER, out, records)


def _opened(folder: Path) -> FileWriter:
    with patch.object(event_file_writer, "_AsyncWriterThread", _Silent):
        return FileWriter(folder, flush_secs=2)


class _Silent(event_file_writer._AsyncWriterThread):
    """Writes to a file. What goes wrong is raised by the next call of its writer, and shall not be printed as well."""

    def run(self) -> None:
        with suppress(Exception):
            super().run()


def _close(writer: FileWriter) -> None:
    """Raises what has gone wrong since the last call, too, of which TensorBoard's own says nothing."""
    writer.close()
    writer.event_writer._async_writer._check_worker_status()


def _flatten(tree: Mapping[str, Any]) -> dict[str, Scalar]:
    there = {name: value for name, value in flattened(tree, ".").items() if value is not None}
    return {name: one if isinstance(one, str | bool | int | float) else str(one) for name, one in there.items()}
