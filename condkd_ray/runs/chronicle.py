"""The study of planned trials: what a dashboard shows of an ablation. It follows the records, which are the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from condkd_ray.core.config import Tree, to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Record, read_records
from condkd_ray.core.storage import remove
from condkd_ray.runs.plan import Plan
from condkd_ray.runs.study_recorder import ARTIFACTS, Scribe
from condkd_ray.study import Objective, TrialLog, open_storage
from condkd_ray.study.storage import quiet
from condkd_ray.study.study import VERSION
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.identity import NUMBERS

PARAMETERS, KEY = "parameters", "config_hash"
"""User attributes: of the study, the values of each parameter; of a trial, the hash of its config."""
ALSO = ("seed", "condensation/ipc")
"""Leaves that every planned trial has as parameters of other names."""
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Entry:
    """A planned trial, or one that has its record."""

    place: Mapping[str, Scalar]
    """`arm`, `ipc` and `seed`."""
    tree: Tree
    teacher: str
    """Its hash."""

    @classmethod
    def planned(cls, plan: Plan, prepared: Prepared) -> Entry:
        """Of a plan."""
        place = {"arm": plan.arm, "ipc": plan.ipc, "seed": plan.seed}
        return cls(place, to_tree(plan.config), prepared.hashes["teacher"])

    @classmethod
    def recorded(cls, record: Record) -> Entry:
        """Of a record."""
        return cls({"arm": record.arm, "ipc": record.ipc, "seed": record.seed}, record.config, record.teacher_hash)

    @property
    def leaves(self) -> dict[str, Scalar]:
        """Where it stands in the plan, and all leaves of its config by their paths."""
        found = _flat(self.tree)
        return {**self.place, **{name: value for name, value in found.items() if name not in ALSO}}


class Chronicle:
    """Hears of rounds and outcomes of an experiment's trials; alone writes its study, a journal in `out`.

    A parameter is whatever the trials differ in, each a choice among the values that occur. Optuna holds the values of
    a parameter fixed, so a plan that brings others begins the study anew; what has its record is written into it again.
    A trial that failed and is tried again is another trial of the study.
    """

    def __init__(self, out: Path, experiment: str, planned: Mapping[str, tuple[Plan, Prepared]]) -> None:
        records = [record for record in read_records(out) if record.numbers == NUMBERS]
        self._entries = {record.config_hash: Entry.recorded(record) for record in records}
        self._entries |= {key: Entry.planned(*plan) for key, plan in planned.items()}
        objective, self._storage = Objective(), open_storage(None, out)
        with quiet():
            self._study = _opened(self._storage, experiment, objective, _differences(self._entries.values()), out)
        self._choices = self._study.user_attrs[PARAMETERS]
        self._ledger = TrialLog(self._storage, experiment, objective)
        self._scribe = Scribe(self._ledger, objective, out)
        told = [trial for trial in self._ledger.trials if trial.state != TrialState.FAIL]
        failed = {trial.user_attrs[KEY] for trial in self._ledger.trials} - {trial.user_attrs[KEY] for trial in told}
        self._numbers = {trial.user_attrs[KEY]: trial.number for trial in told}
        for record in records:
            if record.config_hash not in failed:
                self._retell(record)

    def round(self, key: str, metrics: Metrics) -> None:
        """Trial `key` has ended a round."""
        self._scribe.round(self._number(key), metrics)

    def ended(self, key: str, outcome: Outcome) -> None:
        """Trial `key` has ended. To be told before it gets its record: whoever has one is not run again."""
        self._scribe.ended(self._number(key), key, self._entries[key].tree, outcome)
        if outcome.status == "failed":
            del self._numbers[key]

    def _retell(self, record: Record) -> None:
        """A trial that the study has missed: it is younger than the record, or its driver was killed."""
        if record.config_hash in self._numbers and self._ledger.over(self._numbers[record.config_hash]):
            return
        for metrics in record.history:
            self.round(record.config_hash, metrics)
        self.ended(record.config_hash, record.outcome)

    def _number(self, key: str) -> int:
        """Its number in the study, which it gets when it is first heard of."""
        if key not in self._numbers:
            entry = self._entries[key]
            params = {name: value for name, value in entry.leaves.items() if name in self._choices}
            begun = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions={name: CategoricalDistribution(self._choices[name]) for name in params},
                user_attrs={KEY: key, "teacher_hash": entry.teacher},
            )
            self._numbers[key] = self._ledger.begin(begun)
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
        choices = {key: _each([*before.get(key, []), *choices.get(key, [])]) for key in {**before, **choices}}
        optuna.delete_study(study_name=name, storage=storage)
        remove(out / ARTIFACTS)
    study = optuna.create_study(study_name=name, storage=storage, directions=objective.directions)
    study.set_metric_names(list(objective.names))
    study.set_user_attr(PARAMETERS, choices)
    study.set_user_attr(VERSION, NUMBERS)
    return study


def _differences(entries: Iterable[Entry]) -> dict[str, list[Scalar]]:
    """The values of each leaf in which the trials that have it differ; of arm, IPC and seed in any case."""
    found: dict[str, dict[Scalar, None]] = {}
    for entry in entries:
        for name, value in entry.leaves.items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items() if len(values) > 1 or name in ("arm", "ipc", "seed")}


def _each(values: Iterable[Scalar]) -> list[Scalar]:
    return list(dict.fromkeys(values))


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Scalar]:
    leaves: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{path}{key}/")
        else:
            leaves[f"{path}{key}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return leaves
