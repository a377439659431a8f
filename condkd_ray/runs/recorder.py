"""What an experiment writes down as it runs: records, image grids, event files. Only the driver writes."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condkd_ray import models
from condkd_ray.core.config import to_tree
from condkd_ray.core.environment import git_state, versions
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Record, write_record
from condkd_ray.core.storage import Location
from condkd_ray.core.view import AGREEMENT, NONE, SILENT, Best, Goal, View
from condkd_ray.report.tensorboard.events import Scalar
from condkd_ray.report.tensorboard.writer import EventFiles, beyond_base, hparams, run_name, varying
from condkd_ray.runs.products import Shelf, write_grids
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.identity import NUMBERS, pool_key
from condkd_ray.trial.plan import Plan, PlannedTrial

log = logging.getLogger(__name__)

LOSSES = ("inversion/", "guidance/", "kd/")
"""Families of loss terms."""


class Recorder:
    """Is told of rounds and outcomes in the driver; alone writes records, grids and event files.

    `trials`: what there is to be done; a search adds to it. `storage`: where trials leave their products. `total`: how
    many trials there will be, if more. `choices`, `ranges`: of hyper-parameters in which those will differ, by dotted
    name. `goal`: what is shown of a trial while it runs; `best`: the best that ended before.
    """

    def __init__(
        self,
        experiment: str,
        out: Path,
        trials: Sequence[PlannedTrial[Prepared]],
        storage: Location | None = None,
        *,
        total: int | None = None,
        choices: Mapping[str, Sequence[Scalar]] = NONE,
        ranges: Mapping[str, tuple[float, float]] = NONE,
        goal: Goal = AGREEMENT,
        best: Best | None = None,
        view: View = SILENT,
    ) -> None:
        self._experiment, self._out, self._goal = experiment, out, goal
        running = [self._record(trial, None) for trial in trials]
        choices = {name: choices[name] for name in beyond_base(choices)}
        ranges = {name: ranges[name] for name in beyond_base(ranges)}
        self._names = [*varying([record.config for record in running]), *choices, *ranges]
        examples = [{name: value} for name, found in choices.items() for value in found]
        self._hparams: dict[str, dict[str, Scalar]] = {}
        self._runs: dict[str, str] = {}
        self._leaves: dict[str, Mapping[str, Any]] = {}
        self._events = EventFiles(out, [*(hparams(record, self._names) for record in running), *examples], ranges)
        self._shelf = Shelf(out, storage)
        self.failed = 0
        for trial in trials:
            self.add(trial)
        self._live = view.trials(len(trials) if total is None else total, goal, best)

    def add(self, trial: PlannedTrial[Prepared], leaves: Mapping[str, Any] = NONE) -> None:
        """A trial may be heard of from now on; `leaves`: what was chosen for it, by name."""
        record = self._record(trial, None)
        self._leaves[trial.key] = leaves
        self._hparams[trial.key], self._runs[trial.key] = hparams(record, self._names), run_name(record)

    def round(self, trial: PlannedTrial[Prepared], metrics: Metrics) -> None:
        """A trial has ended a round."""
        key, label, rounds = trial.key, self._label(trial), trial.config.total_rounds
        self._events.trial_started(self._runs[key], self._hparams[key])
        self._events.round(self._runs[key], int(metrics["round"]), metrics)
        self._live.round(key, label, metrics, rounds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(round_line(label, metrics, rounds, self._goal.metric))

    def ended(self, trial: PlannedTrial[Prepared], outcome: Outcome, *, candidate: bool = True) -> None:
        """A trial has ended: its record is written, from then on it is finished.

        `candidate`: whether what it has made may be kept as the best.
        """
        record, key, label = self._record(trial, outcome), trial.key, self._label(trial)
        # Whoever has a record is not run again, so what it has made must be kept before.
        write_grids(self._out, record, outcome, trial.prepared)
        if candidate:
            self._shelf.offer(record, trial.prepared)
        write_record(self._out, record)
        self._events.trial_finished(record)
        accuracy, arm = record.metrics.get("student/test_accuracy"), trial.plan.group
        self._live.finished(key, label, record.status, accuracy, group=arm, leaves=self._leaves[key])
        if record.status == "failed":
            self.failed += 1
            log.info(f"{label} failed: {outcome.reason}")

    def close(self) -> None:
        """No more will be heard."""
        self._live.close()
        self._events.close()

    def _label(self, trial: PlannedTrial) -> str:
        # All trials of a search have one seed.
        return trial.plan.arm if self._goal.decides else trial.label

    def _record(self, trial: PlannedTrial[Prepared], outcome: Outcome | None) -> Record:
        return make_record(self._experiment, trial.plan, trial.key, trial.prepared, outcome)


def make_record(experiment: str, plan: Plan, key: str, prepared: Prepared, outcome: Outcome | None) -> Record:
    """The record of a trial; of a running one where there is no outcome yet."""
    config, hashes = plan.config, prepared.hashes
    return Record(
        experiment=experiment,
        arm=plan.arm,
        ipc=plan.ipc,
        seed=plan.seed,
        dataset=config.data.name,
        teacher=models.label(config.teacher.network),
        student=models.label(config.student),
        condensation=config.condensation.label if config.condensation else "none",
        inversion=config.inversion.name,
        guidance=config.guidance.name,
        memory=config.memory.name,
        config=to_tree(config),
        config_hash=key,
        teacher_hash=hashes["teacher"],
        data_hash=hashes["data"],
        condensed_hash=hashes["condensed"],
        proxy_hash=hashes["proxy"],
        scope=plan.scope,
        pool_key=pool_key(plan.scope, key, config, prepared)[1],
        versions=versions(),
        git=git_state(),
        numbers=NUMBERS,
        # Whoever keeps the record does not keep the images.
        outcome=dataclasses.replace(outcome, images=None) if outcome else Outcome(status="running"),
    )


def round_line(label: str, metrics: Metrics, rounds: int, metric: str) -> str:
    """One round of a trial, whole: the metric that is looked at, all loss terms, its seconds."""
    terms = {name: value for name, value in metrics.items() if name.startswith(LOSSES) and name != metric}
    shown = {name: metrics[name] for name in (metric,) if name in metrics} | terms
    told = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"{label} round {int(metrics['round'])}/{rounds}: {told}, {metrics['time/wall_seconds']:.1f} s"
