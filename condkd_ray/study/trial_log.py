"""What is written down of a study's trials, by their numbers: rounds, attributes, files, and how each has ended.

One process writes it, the driver. Nothing here looks at more than one trial, so that no call takes longer the more
trials there are; a pruner may.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from condkd_ray.study.objective import Direction, Objective


class TrialLog:
    """The trials of the study `name` in `storage`, which is there already.

    Anything may be told twice, as by a trial that was killed: it counts once; and of a trial that is over nothing more
    is written down.
    """

    def __init__(
        self, storage: BaseStorage, name: str, objective: Objective, *, pruner: BasePruner | None = None
    ) -> None:
        self._storage, self._objective = storage, objective
        # A view of it that proposes nothing.
        self._view = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler(), pruner=pruner)
        self._judges = pruner is not None and not isinstance(pruner, NopPruner) and not objective.several

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of them, repeats and those of earlier studies too."""
        return self._view.get_trials(deepcopy=False)

    @property
    def directions(self) -> list[Direction]:
        """Of its values."""
        return self._objective.directions

    def begin(self, trial: FrozenTrial) -> int:
        """Add a trial that runs; its number."""
        identity = self._storage.create_new_trial(self._view._study_id, trial)
        return self._storage.get_trial(identity).number

    def set_params(self, number: int, params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> None:
        """Give a trial parameters that were not known when it began."""
        trial = self._running(number)
        if trial is not None:
            for name in [name for name in params if name not in trial.params]:
                internal = space[name].to_internal_repr(params[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, space[name])

    def report(self, number: int, step: int, value: float | None) -> None:
        """The quality of a trial after `step` rounds."""
        trial = self._running(number)
        if trial is None or step in trial.intermediate_values or self._objective.several:
            return
        if value is not None and math.isfinite(value):
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def should_prune(self, number: int) -> bool:
        """Whether the study's pruner would end this trial now."""
        return self._judges and Trial(self._view, self.trial(number)._trial_id).should_prune()

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write down user attributes."""
        trial = self._running(number)
        if trial is not None:
            for name in [name for name, value in attributes.items() if trial.user_attrs.get(name) != value]:
                self._storage.set_trial_user_attr(trial._trial_id, name, attributes[name])

    def constrain(self, number: int, excesses: Mapping[str, float]) -> None:
        """Write down how far a trial is beyond each limit: for samplers, and, as user attributes, to be read."""
        trial = self._running(number)
        told = {name: value for name, value in excesses.items() if math.isfinite(value)}
        if trial is not None:
            for name in [name for name in told if name not in trial.constraints]:
                Trial(self._view, trial._trial_id).set_constraint(name, told[name])
        if told:
            self.note(number, {"feasible": all(value <= 0 for value in told.values()), "beyond": told})

    def attach(self, number: int, path: Path, store: Any) -> None:
        """Put a file beside a trial, into an artifact store."""
        trial = self._running(number)
        if trial is not None:
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, storage=self._storage)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """The trial has come to its end. Where a value is not finite it has failed."""
        broken = [name for name, value in zip(self._objective.names, values, strict=True) if not math.isfinite(value)]
        if broken:
            return self.fail(number, f"no finite {', '.join(broken)}")
        self._end(number, TrialState.COMPLETE, list(values))

    def prune(self, number: int) -> None:
        """The trial was stopped early."""
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """The trial came to nothing."""
        self.note(number, {"reason": reason})
        self._end(number, TrialState.FAIL)

    def over(self, number: int) -> bool:
        """Whether the study was told how the trial has ended."""
        return self.trial(number).state.is_finished()

    def trial(self, number: int) -> FrozenTrial:
        """A trial as it stands."""
        storage = self._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self._view._study_id, number))

    def _running(self, number: int) -> FrozenTrial | None:
        trial = self.trial(number)
        return None if trial.state.is_finished() else trial

    def _end(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        if self._running(number) is not None:
            self._view.tell(number, values, state=state)
