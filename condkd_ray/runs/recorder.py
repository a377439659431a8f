"""Writers of an experiment's results: manifest, records, image grids, event files, and the study of its trials."""

import dataclasses
import datetime
import itertools
import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from condkd_ray import models
from condkd_ray.core.config import Tree, flattened, to_tree
from condkd_ray.core.dispensable import Dispensable
from condkd_ray.core.environment import CpuClock, git_state, versions
from condkd_ray.core.families import plugins_in
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import (
    MANIFEST,
    Manifest,
    Outcome,
    Record,
    grid_path,
    read_manifest,
    read_records,
    write_end,
)
from condkd_ray.core.storage import Location, remove
from condkd_ray.core.task import CLASSIFICATION, Score, is_dense
from condkd_ray.core.view import AGREEMENT, NONE, SILENT, Best, Goal, View
from condkd_ray.data.datasets import Dataset
from condkd_ray.methods.condensation import Imported
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.results import CALL
from condkd_ray.report.statistics import Baseline, score_of
from condkd_ray.report.tensorboard.events import Scalar
from condkd_ray.report.tensorboard.writer import EventFiles, beyond_base, hparams, run_name, varying
from condkd_ray.runs.products import BestProducts, write_grids
from condkd_ray.study.objective import COST, Constraint, Objective, at_end, excesses
from condkd_ray.study.storage import JOURNAL, open_storage, quiet
from condkd_ray.study.study import VERSION, TrialLog
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.plan import NUMBERS, Plan, PlannedTrial, pool_key

log = logging.getLogger(__name__)

LOSSES = ("inversion/", "guidance/", "kd/")
"""Prefixes of the loss terms among the metrics."""
ARTIFACTS = "artifacts"
"""Folder of the images and configs that the dashboard shows with each trial."""
PARAMETERS, KEY = "parameters", "config_hash"
"""User attributes.

`PARAMETERS`, of a study: the `Values` of each leaf in which trials differ. `KEY`, of a trial: the hash of its config.
"""
MOST_CHOICES = 50
"""Largest number of values of a leaf that is a choice in the study (our choice).

Optuna stores all choices with every trial, so the seeds of a thousand trials would take a thousand times the space of
one.
"""
STDIN = "<stdin>"
"""`__file__` of a script that Python reads from stdin."""
RENAMED = ("seed", "condensation/ipc")
"""Leaves of a config that every planned trial has as parameters of other names."""
Leaf = str | int | float | bool | None
Values = list[Leaf] | dict[str, float] | None
"""Values of a leaf in a study: the list of choices, or, of more than `MOST_CHOICES` numbers, bounds `low` and `high`.

None for more than `MOST_CHOICES` other values: such a leaf is no parameter, but a user attribute of each trial.
"""


def describe_experiment(
    experiment: str,
    question: str,
    trials: Sequence[PlannedTrial],
    workshop: Workshop,
    out: Path,
    *,
    baseline: Baseline = "none",
    study: str = "",
) -> Manifest:
    """Return the manifest of the experiment.

    Trials of the manifest in `out` stay in it, unless `trials` has a trial of the same arm, IPC and seed. `baseline`:
    the arm with which every other arm is compared, or one for each arm. `study`: name of the study whose search
    proposed the trials; trials of other studies in the folder are different trials even if their numbers are equal.
    Raises `InputError` if the manifest in `out` cannot be read.
    """
    plans = [trial.plan for trial in trials]
    config = plans[0].config
    dataset, teachers = workshop.data(config), _teachers(plans, workshop)
    labels = {teacher["label"] for teacher in teachers}
    before = read_manifest(out).planned if (out / MANIFEST).is_file() else []
    planned = {(trial.get("study", ""), trial["arm"], trial["ipc"], trial["seed"]): trial for trial in before}
    for trial in trials:
        place = {"arm": trial.plan.arm, "ipc": trial.plan.ipc, "seed": trial.plan.seed}
        entry = place | {"config_hash": trial.key} | ({"study": study} if study else {})
        # An earlier version planned trials without the name of a study.
        unnamed = ("", *place.values())
        known = unnamed if planned.get(unnamed, {}).get("config_hash") == trial.key else (study, *place.values())
        planned[known] = entry
    return Manifest(
        experiment=experiment,
        question=question.strip().split("\n")[0],
        command=_command(experiment),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        baseline=baseline,
        planned=list(planned.values()),
        teacher=teachers[0] if len(labels) == 1 else {"label": f"{len(labels)} networks"},
        teachers=teachers if len(teachers) > 1 else [],
        dataset={
            "name": dataset.name,
            "hash": dataset.digest,
            "num_classes": dataset.num_classes,
            "image_shape": list(dataset.image_shape),
            "test_size": len(dataset.test),
            "notes": list(dataset.notes),
            "task": dataset.task,
            **(_about_classes(dataset) if is_dense(dataset.task) else {}),
        },
        test_labels=[] if is_dense(dataset.task) else dataset.test.labels.tolist(),
        notes=[*_own_teachers(plans, workshop), *notes_of(plans, dataset.val is not None)],
    )


def _about_classes(dataset: Dataset) -> dict[str, Any]:
    """Return the names of a segmentation's classes, and each one's share of the labelled pixels of the test images."""
    labels = dataset.test.labels
    counts = labels[labels >= 0].long().bincount(minlength=dataset.num_classes).double()
    shares = dict(zip(dataset.class_names, (counts / counts.sum()).tolist(), strict=True))
    return {"class_names": list(dataset.class_names), "pixel_shares": shares}


def _command(experiment: str) -> str:
    """Return the command that runs the experiment again, or a call if Python runs no file (a notebook, stdin)."""
    if getattr(sys.modules["__main__"], "__file__", STDIN) == STDIN:
        return f"{CALL}{experiment}(...)"
    return shlex.join([Path(sys.executable).name, *sys.argv])


def _teachers(plans: Sequence[Plan], workshop: Workshop) -> list[dict[str, Any]]:
    """Return label, seed, hash and scores of each distinct teacher of the plans."""
    configs: dict[TeacherConfig, TrialConfig] = {}
    for plan in plans:
        configs.setdefault(plan.config.teacher, plan.config)
    return [
        {
            "label": config.teacher.label,
            "seed": config.teacher.seed,
            "hash": workshop.prepare(config).hashes["teacher"],
            **workshop.teacher_scores(config),
        }
        for config in configs.values()
    ]


def _own_teachers(plans: Sequence[Plan], workshop: Workshop) -> list[str]:
    """Return a sentence on the score of each teacher that was loaded instead of trained here."""
    lines = dict.fromkeys(workshop.check_teacher(plan.config) for plan in plans)
    return [f"{line[0].upper()}{line[1:]}." for line in lines if line]


def notes_of(plans: Sequence[Plan], has_val: bool) -> list[str]:
    """Return the report's notes on the condensed sets of the plans; `has_val`: there are validation images."""
    used = {plan.config.condensation for plan in plans if plan.config.condensation is not None}
    held_out = "the proxy images" + (" and the validation images" if has_val else "")
    notes = []
    if any(isinstance(method, Imported) for method in used):
        notes.append(
            "The condensed set was made elsewhere, from unknown train images: these may include "
            f"{held_out}, and the test images too if these were held out of train here."
        )
    if any(method.needs_teacher for method in used):
        notes.append("The condensed set was made with the teacher: it adds no information that the teacher lacks.")
    return notes


def teacher_line(manifest: Manifest) -> str:
    """Return lines with the teachers and their scores, for the terminal: one per seed if these have one network."""
    score = score_of([], manifest)
    several = manifest.teachers if "hash" in manifest.teacher else []
    lines = []
    for teacher in several or [manifest.teacher]:
        parts = [f"{teacher[score.key(part)]:.2%} {part}" for part in ("test", "val") if score.key(part) in teacher]
        which = f"{teacher['label']} seed {teacher['seed']}" if several else teacher["label"]
        lines.append(f"teacher {which}".lower() + (f": {score.name} {', '.join(parts)}" if parts else ""))
    return "\n".join(lines)


class Recorder:
    """Writes rounds and outcomes of trials, in the driver; the only writer of records, grids and event files.

    `trials`: the trials known at the start; a search adds more. `storage`: location in which trials leave their
    products; None: `out`. `total`: number of trials, if more are added; None: number of `trials`. `choices`, `ranges`:
    values or bounds of the hyper-parameters in which added trials will differ, by dotted name. `goal`: metric of
    running trials that the view displays. `best`: the best trial so far. `study`: opens the study of planned trials,
    which is written before a record, as a trial with a record is not run again. `of_study`: name of a search's study,
    stored in each record. `score`: score of the data's task; None: that of the first trial's data. Raises
    `InputError` if the manifest or a record in `out` cannot be read.

    Event files and the study only repeat the contents of the records: if they cannot be written, a message is logged,
    and nothing is lost.
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
        study: "Callable[[], StudyRecorder] | None" = None,
        of_study: str = "",
        score: Score | None = None,
        view: View = SILENT,
    ) -> None:
        if score is None:
            score = Score(trials[0].config.data.task) if trials else CLASSIFICATION
        goal = dataclasses.replace(goal, score=score)
        self._experiment, self._out, self._goal, self._of_study = experiment, out, goal, of_study
        self._study = None if study is None else Dispensable(f"the study {out / JOURNAL}", study)
        self.clock = CpuClock()
        """CPU time of this process and its descendants; ticks whenever a trial ends, with its processes perhaps."""
        choices = {name: choices[name] for name in beyond_base(choices)}
        ranges = {name: ranges[name] for name in beyond_base(ranges)}
        self._names = [*varying(to_tree(trial.config) for trial in trials), *choices, *ranges]
        examples = [{name: value} for name, found in choices.items() for value in found]
        self._known: dict[str, tuple[str, dict[str, Scalar], Mapping[str, Any]]] = {}
        """Name of a trial's run in TensorBoard, its hyper-parameters there, and its values of open leaves, by key."""
        for trial in trials:
            self.add(trial)
        planned = [*(own for _, own, _ in self._known.values()), *examples]
        self._events = Dispensable(f"TensorBoard files in {out}", lambda: EventFiles(out, planned, ranges, score))
        self._products = BestProducts(out, storage)
        self.failed = 0
        self._live = view.trials(len(trials) if total is None else total, goal, best)

    def add(self, trial: PlannedTrial[Prepared], leaves: Mapping[str, Any] = NONE) -> None:
        """Accept reports of a trial from now on. `leaves`: its values of the open leaves, by name."""
        record = self._record(trial, None)
        self._known[trial.key] = run_name(record), hparams(record, self._names), leaves

    def round(self, trial: PlannedTrial[Prepared], metrics: Metrics) -> None:
        """Record the metrics of a finished round."""
        if self._study is not None:
            self._study.do(lambda study: study.round(trial.key, metrics))
        label, rounds = self._label(trial), trial.config.total_rounds
        run, own, _ = self._known[trial.key]
        self._events.do(lambda files: files.trial_started(run, own))
        self._events.do(lambda files: files.round(run, int(metrics["round"]), metrics))
        self._live.round(trial.key, label, metrics, rounds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(round_line(label, metrics, rounds, self._goal.metric))

    def ended(self, trial: PlannedTrial[Prepared], outcome: Outcome, *, candidate: bool = True) -> None:
        """Write the record of a trial that has ended; from then on the trial is not run again.

        `candidate`: whether its product may be kept as the best. If a trial with a finished record was run again,
        because its files were needed once more, and did not finish, this is logged and the old record stays. Raises
        `InputError` if an existing record or product cannot be read.
        """
        record, label = self._record(trial, outcome), self._label(trial)
        write_grids(self._out, record, outcome, trial.prepared)
        if self._study is not None:
            # The outcome of the record has no images, so the study attaches the grid that has just been written.
            self._study.do(lambda study: study.ended(trial.key, record.outcome))
        # A trial with a record is not run again, so its product must be kept before the record is written.
        if candidate:
            self._products.update(record, trial.prepared)
        stored = write_end(self._out, record)
        if stored:
            self._events.do(lambda files: files.trial_finished(record))
        _, _, leaves = self._known[trial.key]
        score = record.metrics.get(self._goal.score.test)
        self._live.finished(trial.key, label, record.status, score, group=trial.plan.group, leaves=leaves)
        if record.status == "failed":
            self.failed += 1
            log.info(f"{label} failed: {outcome.reason}{'' if stored else '; its finished record is kept'}")
        self.clock.tick()

    def close(self) -> None:
        """Close study and view; no report may follow."""
        self._live.close()
        if self._study is not None:
            self._study.renew(lambda: clear_study(self._out))

    def _label(self, trial: PlannedTrial) -> str:
        # All trials of a search have one seed.
        return trial.plan.arm if self._goal.decides else trial.label

    def _record(self, trial: PlannedTrial[Prepared], outcome: Outcome | None) -> Record:
        record = make_record(self._experiment, trial.plan, trial.key, trial.prepared, outcome)
        return dataclasses.replace(record, study=self._of_study)


def make_record(experiment: str, plan: Plan, key: str, prepared: Prepared, outcome: Outcome | None) -> Record:
    """Return the record of a trial, as "running" if it has no outcome yet."""
    config, hashes = plan.config, prepared.hashes
    return Record(
        experiment=experiment,
        arm=plan.arm,
        ipc=plan.ipc,
        seed=plan.seed,
        dataset=config.data.name,
        teacher=config.teacher.label,
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
        plugins=plugins_in(config),
        git=git_state(),
        numbers=NUMBERS,
        # The images go into their own files, not into the record.
        outcome=dataclasses.replace(outcome, images=None) if outcome else Outcome(status="running"),
    )


def round_line(label: str, metrics: Metrics, rounds: int, metric: str) -> str:
    """Return one round of a trial as text: `metric`, all loss terms, and the seconds of the round."""
    terms = {name: value for name, value in metrics.items() if name.startswith(LOSSES) and name != metric}
    shown = {name: metrics[name] for name in (metric,) if name in metrics} | terms
    text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"{label} round {int(metrics['round'])}/{rounds}: {text}, {metrics['time/wall_seconds']:.1f} s"


class StudyWriter:
    """Writes round metrics and results of trials into `study`, as values of `objective`.

    A trial is identified by its number in the study. Artifacts are in the result folder `out`.
    """

    def __init__(
        self, study: TrialLog, objective: Objective, out: Path, constraints: Sequence[Constraint] = ()
    ) -> None:
        self._log, self._objective, self._out, self._constraints = study, objective, out, constraints
        (out / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        self._store = FileSystemArtifactStore(out / ARTIFACTS)

    def round(self, number: int, metrics: Metrics) -> None:
        """Write the quality of a trial after a round."""
        self._log.report(number, int(metrics["round"]), self._objective.now(metrics))

    def ended(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        """Write the final state of a trial: costs, images, config, and its values or the reason of its failure.

        `key`: hash of the config. `tree`: the config. No effect if the trial has ended in the study.
        """
        if self._log.over(number):
            return
        self._log.note(number, attributes(outcome, [one.name for one in self._constraints]))
        self._attach(number, key, tree, outcome)
        beyond = excesses(self._constraints, outcome.history)
        self._log.constrain(number, beyond)
        unknown = [one.name for one in self._constraints if math.isnan(beyond[one.text])]
        if outcome.status == "finished" and unknown:
            self._log.fail(number, f"no finite {', '.join(unknown)}")
        elif outcome.status == "finished":
            self._log.complete(number, self._objective.values(outcome.history))
        elif outcome.status == "pruned":
            self._log.prune(number)
        else:
            self._log.fail(number, outcome.reason)

    def restore(self, number: int, record: Record) -> None:
        """Write an ended trial, of which the study lacks all or a part, from its record."""
        if self._log.over(number):
            return
        self._log.note(number, {KEY: record.config_hash, "teacher_hash": record.teacher_hash})
        for metrics in record.history:
            self.round(number, metrics)
        self.ended(number, record.config_hash, record.config, record.outcome)

    def _attach(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        grid = grid_path(self._out, key)
        if outcome.images is not None and outcome.images_per_class:
            write_grid(grid, outcome.images, outcome.images_per_class, outcome.grid_rows)
        if grid.is_file():
            self._log.attach(number, grid, self._store)
        # The store copies a file under a new name.
        config = self._out / ARTIFACTS / f"{key}.yaml"
        # The dumper in C takes a twentieth of the time.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        config.write_text(yaml.dump(tree, Dumper=dumper, sort_keys=False), encoding="utf-8")
        self._log.attach(number, config, self._store)
        config.unlink()


def attributes(outcome: Outcome, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return the known costs of a trial: seconds, bytes and its last node; and the metrics in `also`."""
    found = {name: at_end(name, outcome.history) for name in (*COST, *also)}
    known = {name: value for name, value in found.items() if math.isfinite(value)}
    return known | ({"peak_bytes": outcome.peak_bytes} if outcome.peak_bytes else {}) | {"node": outcome.node}


class StudyRecorder:
    """Writes the study of planned trials, a journal in `out`, in which a dashboard displays an ablation.

    This is the study's only writer; the records remain the source of truth. Each leaf of the configs in which the
    trials differ is a parameter: a choice among the values that occur, or a range of numbers; see `Values`. Optuna
    fixes a parameter's choices, so a plan with further values starts a new study, into which the trials with records
    are written again. A trial that failed and is tried again is a new trial of the study. Raises `InputError` if a
    record or the journal cannot be read.
    """

    def __init__(self, experiment: str, out: Path, trials: Iterable[PlannedTrial[Prepared]]) -> None:
        recorded = [record for record in read_records(out) if record.numbers == NUMBERS]
        self._trials = {trial.key: trial for trial in trials}
        others = (_leaves_of(record) for record in recorded if record.config_hash not in self._trials)
        # Lines that are lost with the machine are written again from the records.
        objective, storage = Objective(), open_storage(None, out, durable=False)
        with quiet():
            values = _differences(itertools.chain(others, (_leaves(t.plan) for t in self._trials.values())))
            study = _opened(storage, experiment, objective, values, out)
        self._values: dict[str, Values] = study.user_attrs[PARAMETERS]
        self._log = TrialLog(storage, experiment, objective)
        self._writer = StudyWriter(self._log, objective, out)
        kept = [trial for trial in self._log.trials if trial.state != TrialState.FAIL]
        failed = {trial.user_attrs[KEY] for trial in self._log.trials} - {trial.user_attrs[KEY] for trial in kept}
        self._numbers = {trial.user_attrs[KEY]: trial.number for trial in kept}
        for record in recorded:
            if record.config_hash not in failed:
                self._restore(record)

    def round(self, key: str, metrics: Metrics) -> None:
        """Write the quality of a trial after a round."""
        self._writer.round(self._number(key), metrics)

    def ended(self, key: str, outcome: Outcome) -> None:
        """Write the final state of a trial.

        Call this before its record is written: then the trial is never run again.
        """
        self._writer.ended(self._number(key), key, to_tree(self._trials[key].config), outcome)
        if outcome.status == "failed":
            del self._numbers[key]

    def _restore(self, record: Record) -> None:
        """Write a trial that the study lacks because it is newer than the record, or because the driver was killed."""
        key = record.config_hash
        self._writer.restore(self._number(key, record), record)
        if record.status == "failed":
            del self._numbers[key]

    def _number(self, key: str, record: Record | None = None) -> int:
        """Return the trial's number in the study; the first call adds the trial.

        `record`: a trial that need not be planned.
        """
        if key not in self._numbers:
            if (trial := self._trials.get(key)) is not None:
                leaves, teacher = _leaves(trial.plan), trial.prepared.hashes["teacher"]
            else:
                assert record is not None, key
                leaves, teacher = _leaves_of(record), record.teacher_hash
            found = {name: value for name, value in leaves.items() if name in self._values}
            space = {name: kind for name in found if (kind := _distribution(self._values[name])) is not None}
            beside = {name: value for name, value in found.items() if name not in space}
            begun = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params={name: found[name] for name in space},
                distributions=space,
                user_attrs={KEY: key, "teacher_hash": teacher} | beside,
            )
            self._numbers[key] = self._log.begin(begun)
        return self._numbers[key]


def clear_study(out: Path) -> None:
    """Delete the study of planned trials. It can be made again from their records."""
    (out / JOURNAL).unlink(missing_ok=True)
    remove(out / ARTIFACTS)


def _opened(
    storage: BaseStorage, name: str, objective: Objective, values: Mapping[str, Values], out: Path
) -> optuna.Study:
    """Return the study `name`; its parameters have all of `values` and all values that they had before.

    A study of another version of the numbers is replaced by a new one.
    """
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        before: dict[str, Values] = study.user_attrs.get(PARAMETERS, {})
        current = study.user_attrs.get(VERSION, 1) == NUMBERS
        values = {key: _joined(before.get(key, []), values.get(key, [])) for key in {**before, **values}}
        if current and values == before:
            return study
        optuna.delete_study(study_name=name, storage=storage)
        remove(out / ARTIFACTS)
    study = optuna.create_study(study_name=name, storage=storage, directions=objective.directions)
    study.set_metric_names(list(objective.names))
    study.set_user_attr(PARAMETERS, values)
    study.set_user_attr(VERSION, NUMBERS)
    return study


def _differences(trials: Iterable[Mapping[str, Leaf]]) -> dict[str, Values]:
    """Return the values of each leaf in which trials that have it differ; arm, IPC and seed are always included."""
    found: dict[str, dict[Leaf, None]] = {}
    for leaves in trials:
        for name, value in leaves.items():
            found.setdefault(name, {})[value] = None
    return {
        name: _as_values(list(values))
        for name, values in found.items()
        if len(values) > 1 or name in ("arm", "ipc", "seed")
    }


def _as_values(found: list[Leaf]) -> Values:
    return found if len(found) <= MOST_CHOICES else _bounds(found)


def _bounds(found: Sequence[Leaf]) -> dict[str, float] | None:
    """Return the bounds of finite numbers, integers only if all numbers are; None if a value is no such number."""
    plain = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    numbers = [value for value in plain if math.isfinite(value)]
    if len(numbers) < len(found):
        return None
    kind = int if all(isinstance(value, int) for value in numbers) else float
    return {"low": kind(min(numbers)), "high": kind(max(numbers))}


def _joined(first: Values, second: Values) -> Values:
    """Return the values that are in one of the two or in both."""
    if first is None or second is None:
        return None
    found = [*(first.values() if isinstance(first, dict) else first)]
    found += second.values() if isinstance(second, dict) else second
    chosen = isinstance(first, list) and isinstance(second, list)
    return _as_values(list(dict.fromkeys(found))) if chosen else _bounds(found)


def _distribution(values: Values) -> BaseDistribution | None:
    """Return the distribution of a parameter with these values; None if the leaf is no parameter."""
    if values is None:
        return None
    if isinstance(values, list):
        return CategoricalDistribution(values)
    low, high = values["low"], values["high"]
    return (
        IntDistribution(low, high) if isinstance(low, int) and isinstance(high, int) else FloatDistribution(low, high)
    )


def _leaves(plan: Plan) -> dict[str, Leaf]:
    return _named(plan.arm, plan.ipc, plan.seed, to_tree(plan.config))


def _leaves_of(record: Record) -> dict[str, Leaf]:
    return _named(record.arm, record.ipc, record.seed, record.config)


def _named(arm: str, ipc: int, seed: int, config: Tree) -> dict[str, Leaf]:
    """Return arm, IPC and seed of a trial, and the leaves of its config by their paths."""
    found = {name: leaf for name, leaf in flattened(config).items() if name not in RENAMED}
    plain = {name: json.dumps(leaf) if isinstance(leaf, list | tuple) else leaf for name, leaf in found.items()}
    return {"arm": arm, "ipc": ipc, "seed": seed, **plain}
