"""What is written into an Optuna study of trials as they run and end: of a search's, and of planned ones."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from condkd_ray.core.config import Tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Record, grid_path, read_records
from condkd_ray.core.storage import remove
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.runs.recorder import make_record
from condkd_ray.study.objective import COST, Constraint, Objective, at_end, excesses
from condkd_ray.study.storage import open_storage, quiet
from condkd_ray.study.study import VERSION, TrialLog
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.plan import NUMBERS, PlannedTrial

ARTIFACTS = "artifacts"
"""Folder of the images and configs that the dashboard shows beside a trial."""
PARAMETERS, KEY = "parameters", "config_hash"
"""User attributes: of the study, the values of each parameter; of a trial, the hash of its config."""
ALSO = ("seed", "condensation/ipc")
"""Leaves that every planned trial has as parameters of other names."""
Scalar = str | int | float | bool | None


class StudyWriter:
    """Writes what an `objective` sees of trials, named by their numbers, into `study`.

    Files lie in the result folder `out`.
    """

    def __init__(
        self, study: TrialLog, objective: Objective, out: Path, constraints: Sequence[Constraint] = ()
    ) -> None:
        self._log, self._objective, self._out, self._constraints = study, objective, out, constraints
        (out / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        self._store = FileSystemArtifactStore(out / ARTIFACTS)

    def round(self, number: int, metrics: Metrics) -> None:
        """A trial has ended a round."""
        self._log.report(number, int(metrics["round"]), self._objective.now(metrics))

    def ended(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        """A trial of this config is over: what it took, its images and whole config, and how it has ended."""
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

    def _attach(self, number: int, key: str, tree: Tree, outcome: Outcome) -> None:
        grid = grid_path(self._out, key)
        if outcome.images is not None and outcome.images_per_class:
            write_grid(grid, outcome.images, outcome.images_per_class)
        if grid.is_file():
            self._log.attach(number, grid, self._store)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{key}.yaml"
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
            self._log.attach(number, path, self._store)


def attributes(outcome: Outcome, also: Sequence[str] = ()) -> dict[str, Any]:
    """What a trial took, as far as it came: seconds, bytes, and the node that it ran on last; and metrics by name."""
    found = {name: at_end(name, outcome.history) for name in (*COST, *also)}
    told = {name: value for name, value in found.items() if math.isfinite(value)}
    return told | ({"peak_bytes": outcome.peak_bytes} if outcome.peak_bytes else {}) | {"node": outcome.node}


class StudyRecorder:
    """The study of planned trials, a journal in `out`, which a dashboard shows of an ablation.

    It is told of rounds and ends, and alone writes the study; but the records are the truth. A parameter is whatever
    the trials differ in, each a choice among the values that occur. Optuna holds the values of a parameter fixed, so a
    plan that brings others begins the study anew; what has its record is written into it again. A trial that failed and
    is tried again is another trial of the study.
    """

    def __init__(self, experiment: str, out: Path, trials: Iterable[PlannedTrial[Prepared]]) -> None:
        recorded = [record for record in read_records(out) if record.numbers == NUMBERS]
        self._records = {record.config_hash: record for record in recorded}
        self._records |= {t.key: make_record(experiment, t.plan, t.key, t.prepared, None) for t in trials}
        objective, storage = Objective(), open_storage(None, out)
        with quiet():
            study = _opened(storage, experiment, objective, _differences(self._records.values()), out)
        self._choices = study.user_attrs[PARAMETERS]
        self._log = TrialLog(storage, experiment, objective)
        self._writer = StudyWriter(self._log, objective, out)
        told = [trial for trial in self._log.trials if trial.state != TrialState.FAIL]
        failed = {trial.user_attrs[KEY] for trial in self._log.trials} - {trial.user_attrs[KEY] for trial in told}
        self._numbers = {trial.user_attrs[KEY]: trial.number for trial in told}
        for record in recorded:
            if record.config_hash not in failed:
                self._retell(record)

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """A trial has ended a round."""
        self._writer.round(self._number(trial.key), metrics)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """A trial is over. To be told before it gets its record: whoever has one is not run again."""
        self._end(trial.key, outcome)

    def _end(self, key: str, outcome: Outcome) -> None:
        self._writer.ended(self._number(key), key, self._records[key].config, outcome)
        if outcome.status == "failed":
            del self._numbers[key]

    def _retell(self, record: Record) -> None:
        """A trial that the study has missed: it is younger than the record, or its driver was killed."""
        key = record.config_hash
        if key in self._numbers and self._log.over(self._numbers[key]):
            return
        for metrics in record.history:
            self._writer.round(self._number(key), metrics)
        self._end(key, record.outcome)

    def _number(self, key: str) -> int:
        """Its number in the study, which it gets when it is first heard of."""
        if key not in self._numbers:
            params = {name: value for name, value in _leaves(self._records[key]).items() if name in self._choices}
            begun = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions={name: CategoricalDistribution(self._choices[name]) for name in params},
                user_attrs={KEY: key, "teacher_hash": self._records[key].teacher_hash},
            )
            self._numbers[key] = self._log.begin(begun)
        return self._numbers[key]


def _opened(
    storage: BaseStorage, name: str, objective: Objective, choices: Mapping[str, list[Scalar]], out: Path
) -> optuna.Study:
    """The study of that name, with all these values of its parameters, and those that it had before.

    One of another version of the numbers begins anew.
    """
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        before: dict[str, list[Scalar]] = study.user_attrs.get(PARAMETERS, {})
        current = study.user_attrs.get(VERSION, 1) == NUMBERS
        if current and all(value in before.get(key, []) for key, values in choices.items() for value in values):
            return study
        both = {key: [*before.get(key, []), *choices.get(key, [])] for key in {**before, **choices}}
        choices = {key: list(dict.fromkeys(values)) for key, values in both.items()}
        optuna.delete_study(study_name=name, storage=storage)
        remove(out / ARTIFACTS)
    study = optuna.create_study(study_name=name, storage=storage, directions=objective.directions)
    study.set_metric_names(list(objective.names))
    study.set_user_attr(PARAMETERS, choices)
    study.set_user_attr(VERSION, NUMBERS)
    return study


def _differences(records: Iterable[Record]) -> dict[str, list[Scalar]]:
    """The values of each leaf in which the trials that have it differ; of arm, IPC and seed in any case."""
    found: dict[str, dict[Scalar, None]] = {}
    for record in records:
        for name, value in _leaves(record).items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items() if len(values) > 1 or name in ("arm", "ipc", "seed")}


def _leaves(record: Record) -> dict[str, Scalar]:
    """Where a trial stands in the plan, and all leaves of its config by their paths."""
    found = {name: value for name, value in _flat(record.config).items() if name not in ALSO}
    return {"arm": record.arm, "ipc": record.ipc, "seed": record.seed, **found}


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Scalar]:
    leaves: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{path}{key}/")
        else:
            leaves[f"{path}{key}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return leaves
