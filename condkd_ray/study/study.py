"""The Optuna study of a search: all proposed trials with their parameters, metrics and results.

It is the complete state of a search. Only one process writes it, the driver.
"""

import itertools
import json
import logging
import math
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial

from condkd_ray.core.config import Tree, content_hash, flattened
from condkd_ray.core.method import InputError, require
from condkd_ray.study.choices import Sampler
from condkd_ray.study.objective import Constraint, Direction, Objective, known_excesses
from condkd_ray.study.points import check_point, left_open
from condkd_ray.study.space import close, distribution, leaves, plugins, to_plain
from condkd_ray.study.storage import quiet
from condkd_ray.study.strategies import IN_ORDER, check_sampler, make_sampler
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.plan import NUMBERS

log = logging.getLogger(__name__)

REPEATS = 50
"""Number of consecutive proposals without a new trial after which the space counts as exhausted (our choice).

Also the largest number of draws of the leaves that a point does not set.
"""
GPU_SECONDS = "gpu_seconds"
"""User attribute of a study: GPU seconds used by its trials in all runs."""
PRECISION = "precision"
"""User attribute of a study: the precision of trials in whose config it depends on the hardware."""
VERSION = "numbers"
"""User attribute of a study: the version (`NUMBERS`) of its values; 1 if missing."""
MADE = "objective"
"""User attribute of a study: its objectives. Written last: a study without it and without trials is incomplete."""
LIFE = "life"
"""User attribute of a member of a population: its parameters in each generation, see `population`."""
TO_RUN, REPEAT, IMPOSSIBLE, KNOWN = "to_run", "repeats", "impossible", "known_from"
"""User attributes of trials. `TO_RUN` marks trials that run. The others mark trials that do not: `REPEAT` holds the
number of the equal earlier trial, `IMPOSSIBLE` the reason why the config is invalid, `KNOWN` the trial of an earlier
study."""
FIXED = "fixed_params"
"""System attribute of Optuna: the values of the point with which a trial was enqueued."""
RESTORED = "taken_back"
"""System attribute of trials that the study had lost and that were restored from their records."""


class TrialLog:
    """Writes the progress of trials, by their numbers, to the study `name`, which exists in `storage`.

    All calls are idempotent, as a killed trial reports its rounds again after a restart. Calls for an ended trial have
    no effect. Each call reads one trial, so that its time does not depend on the number of trials; only pruners read
    more.
    """

    def __init__(
        self, storage: BaseStorage, name: str, objective: Objective, *, pruner: BasePruner | None = None
    ) -> None:
        self._storage, self._objective = storage, objective
        # This object only reads and ends trials; it proposes none.
        self._view = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler(), pruner=pruner)
        self._judges = pruner is not None and not isinstance(pruner, NopPruner) and not objective.several

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, including repeats and trials of earlier studies."""
        return self._view.get_trials(deepcopy=False)

    @property
    def directions(self) -> list[Direction]:
        """Direction of each objective."""
        return self._objective.directions

    def begin(self, trial: FrozenTrial) -> int:
        """Add a running trial to the study, and return its number."""
        identity = self._storage.create_new_trial(self._view._study_id, trial)
        return self._storage.get_trial(identity).number

    def set_params(self, number: int, params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> None:
        """Set parameters of a trial that were unknown when it began; `space` holds their distributions."""
        trial = self._running(number)
        if trial is not None:
            for name in [name for name in params if name not in trial.params]:
                internal = space[name].to_internal_repr(params[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, space[name])

    def report(self, number: int, step: int, value: float | None) -> None:
        """Record the first objective of a trial after `step` rounds.

        Ignored if there are several objectives, or if `value` is None or not finite.
        """
        trial = self._running(number)
        if trial is None or step in trial.intermediate_values or self._objective.several:
            return
        if value is not None and math.isfinite(value):
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def should_prune(self, number: int) -> bool:
        """Return True if the study's pruner would stop the trial now."""
        return self._judges and Trial(self._view, self.trial(number)._trial_id).should_prune()

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes of a running trial, by name."""
        trial = self._running(number)
        if trial is not None:
            for name in [name for name, value in attributes.items() if trial.user_attrs.get(name) != value]:
                self._storage.set_trial_user_attr(trial._trial_id, name, attributes[name])

    def constrain(self, number: int, excesses: Mapping[str, float]) -> None:
        """Record the excesses of a running trial, by limit, for samplers and as attributes `feasible` and `beyond`."""
        trial = self._running(number)
        known = {name: value for name, value in excesses.items() if math.isfinite(value)}
        if trial is not None:
            for name in [name for name in known if name not in trial.constraints]:
                Trial(self._view, trial._trial_id).set_constraint(name, known[name])
        if known:
            self.note(number, {"feasible": all(value <= 0 for value in known.values()), "beyond": known})

    def attach(self, number: int, path: Path, store: Any) -> None:
        """Upload a file as an artifact of a running trial. `store`: the Optuna artifact store."""
        trial = self._running(number)
        if trial is not None:
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, storage=self._storage)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """End a trial with its objective values; it counts as failed if a value is not finite."""
        broken = [name for name, value in zip(self._objective.names, values, strict=True) if not math.isfinite(value)]
        if broken:
            return self.fail(number, f"no finite {', '.join(broken)}")
        self._end(number, TrialState.COMPLETE, list(values))

    def prune(self, number: int) -> None:
        """End a trial as pruned."""
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed, with the reason as a user attribute."""
        self.note(number, {"reason": reason})
        self._end(number, TrialState.FAIL)

    def over(self, number: int) -> bool:
        """Return True if the trial has ended in the study."""
        return self.trial(number).state.is_finished()

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial by its number."""
        storage = self._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self._view._study_id, number))

    def _running(self, number: int) -> FrozenTrial | None:
        trial = self.trial(number)
        return None if trial.state.is_finished() else trial

    def _end(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        if self._running(number) is not None:
            self._view.tell(number, values, state=state)


@dataclass(frozen=True)
class Proposal:
    """A trial to run: its number in the study, config and parameters."""

    number: int
    config: TrialConfig
    params: Mapping[str, Any]


class Study(TrialLog):
    """Proposes trials and stores their results; creates the study `name` in `storage` or continues the existing one.

    Raises `InputError` if the existing study has another space, version of the numbers or plug-in, or other objectives,
    constraints or population; if its trials are damaged; or if the sampler does not support the space.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        tree: dict[str, Any],
        objective: Objective,
        *,
        sampler: Sampler = "tpe",
        seed: int = 0,
        pruner: BasePruner | None = None,
        constraints: Sequence[Constraint] = (),
        population: Sequence[int] = (),
    ) -> None:
        check_sampler(sampler, tree, constrained=bool(constraints))
        self._tree, self._seed, self._constraints = tree, seed, constraints
        self._sampler: Sampler = sampler
        limits = [one.text for one in constraints]
        settings = {"space": to_plain(tree), "constraints": limits, "population": list(population)}
        settings |= {"plugins": plugins(tree)}
        earlier = {"constraints": [one.rounded for one in constraints]}
        self._study = _open(storage, name, settings | {MADE: list(objective.names)}, objective, earlier)
        super().__init__(storage, name, objective, pruner=pruner)
        self._numbers = {content_hash(self._close(trial)): trial.number for trial in reversed(self.own)}
        for trial in self.finished:
            self._check_values(trial)

    @property
    def alone(self) -> bool:
        """True if the storage holds no other study."""
        return len(optuna.get_all_study_names(self._storage)) == 1

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials of this study that have ended: complete, pruned or failed."""
        return [trial for trial in self.own if trial.state.is_finished()]

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Complete feasible trials, sorted by the first objective, the best first; equal ones by number."""
        complete = [trial for trial in self.finished if trial.state == TrialState.COMPLETE]
        allowed = [trial for trial in complete if all(excess <= 0 for excess in trial.constraints.values())]
        sign = 1 if self._objective.directions[0] == "minimize" else -1
        return sorted(allowed, key=lambda trial: (sign * trial.values[0], trial.number))

    @property
    def front(self) -> list[FrozenTrial]:
        """Complete feasible trials on the Pareto front; with one objective at most one trial."""
        if not self._objective.several:
            return self.ranked[:1]
        best = {trial.number for trial in self._study.best_trials}
        return [trial for trial in self.ranked if trial.number in best]

    @property
    def gpu_seconds(self) -> float:
        """GPU seconds used by all trials in all runs."""
        return self._study.user_attrs.get(GPU_SECONDS, 0.0)

    def keep_gpu_seconds(self, used: float) -> None:
        """Store the GPU seconds used by all trials so far."""
        self._study.set_user_attr(GPU_SECONDS, used)

    def keep_to(self, precision: str | None) -> None:
        """Store the precision of the trials. Raises `InputError` if earlier trials have another precision."""
        before = self._study.user_attrs.get(PRECISION, precision)
        accepted = f"{before}, that of its trials so far: the same --gpus-per-trial, or another --out or --study"
        require(before == precision, f"precision of study {self._study.study_name!r}", precision, accepted)
        self._study.set_user_attr(PRECISION, precision)

    def left_running(self) -> list[Proposal]:
        """Return the trials that an earlier driver started and did not end, in the order of numbers.

        Raises `InputError` if their parameters do not fit the space.
        """
        return [self.proposal(trial) for trial in self.own if trial.state == TrialState.RUNNING]

    def proposal(self, trial: FrozenTrial) -> Proposal:
        """Return a trial of this study with its config. Raises `InputError` if its parameters do not fit the space."""
        return Proposal(trial.number, self._close(trial), trial.params)

    def config(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the config with these values of the open leaves. Raises `InputError` if it is invalid."""
        return close(self._tree, FixedTrial(dict(params)))

    def propose(self, check: Callable[[TrialConfig], None] = lambda config: None) -> Proposal | None:
        """Return a new trial that differs from all others; None if the space seems to have no other.

        `check`: function that raises `InputError` for a config that cannot run; such trials are skipped.
        """
        # Below errors, Optuna logs hints on conditional spaces and full grids, which users cannot act upon.
        with quiet(optuna.logging.ERROR):
            return self._propose(check)

    def _propose(self, check: Callable[[TrialConfig], None]) -> Proposal | None:
        left, again = REPEATS, self._repeats_allowed()
        while left:
            trial = self._next()
            # Enqueued points do not count, as their number is limited.
            left -= FIXED not in self.trial(trial.number).system_attrs
            try:
                config = self._suggested(trial)
                check(config)
            except InputError as error:
                self._pass_over(trial, IMPOSSIBLE, str(error))
                continue
            twin = self._numbers.setdefault(content_hash(config), trial.number)
            if twin == trial.number:
                trial.set_user_attr(TO_RUN, True)
                return Proposal(trial.number, config, trial.params)
            self._pass_over(trial, REPEAT, twin)
            if twin in again:
                # When the restored trial was first proposed, this proposal was no repeat, so it does not count.
                left = REPEATS
                again.remove(twin)
        return None

    def _repeats_allowed(self) -> set[int]:
        """Return restored trials whose repeats do not count, for samplers that restart their sequence after a loss."""
        if self._sampler not in IN_ORDER:
            return set()
        trials = self.trials
        back = {trial.number for trial in trials if RESTORED in trial.system_attrs}
        return back - {trial.user_attrs[REPEAT] for trial in trials if REPEAT in trial.user_attrs}

    def suggest_first(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Make the study propose these points (values of parameters) before all others.

        Points of an earlier call are skipped. Leaves that a point does not set are drawn, at most `REPEATS` times,
        until the trial is new and can run. A point whose running trial was lost gets its old number, if this is known.
        """
        with quiet():
            for number, point in self._untried(points):
                there = self.trials[number] if number < len(self.trials) else None
                if there is not None and _bare(there):
                    self._storage.set_trial_system_attr(there._trial_id, FIXED, point)
                else:
                    self._study.enqueue_trial(point, skip_if_exists=True)

    def _untried(self, points: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """Return the points that were not tried, each with its trial number in a study that begins with all points.

        A restored trial does not record its point. It is matched with the point of its number if their values agree;
        else with any point that agrees, except a point whose number was running when it was lost.
        """
        trials = self.trials
        known = sum(1 for _ in itertools.takewhile(lambda trial: KNOWN in trial.user_attrs, trials))
        enqueued = [trial.system_attrs[FIXED] for trial in trials if FIXED in trial.system_attrs]
        back = {trial.number: trial.params for trial in self.own if RESTORED in trial.system_attrs}
        unlike = list[dict[str, Any]]()
        for point in map(dict, points):
            if point not in unlike:
                unlike.append(point)
        numbered = list(enumerate(unlike, known))
        placed = {number for number, point in numbered if point.items() <= back.get(number, {}).items()}
        others = [params for number, params in back.items() if number not in placed]

        def tried(number: int, point: dict[str, Any]) -> bool:
            if number in placed or point in enqueued or point in back.values():
                return True
            ran = number < len(trials) and _bare(trials[number])
            return not ran and any(point.items() <= params.items() for params in others)

        return [(number, point) for number, point in numbered if not tried(number, point)]

    def restore(self, number: int, params: Mapping[str, Any], begun: Container[int]) -> int:
        """Restore a lost trial as a running trial, and return its number. `params`: values of all open leaves.

        This is `number`, unless the study has a trial with the same config or another trial with this number. Lower
        numbers that are lost too are added. Those in `begun` are added without parameters, because these are unknown,
        and are proposed anew; they then get the same parameters as the first time. The others are added as failed,
        since they did not run.
        """
        fixed = FixedTrial(dict(params))
        known = content_hash(close(self._tree, fixed))
        if known in self._numbers:
            return self._numbers[known]
        for lost in range(len(self.trials), number):
            self.begin(create_trial(state=TrialState.RUNNING))
            if lost not in begun:
                self.fail(lost, "not run, as far as is known: the study had lost it")
        there = self.trials[number] if number < len(self.trials) else None
        if there is None or not _may_become(there, params):
            number = self.begin(
                create_trial(
                    state=TrialState.RUNNING,
                    params=fixed.params,
                    distributions=dict(fixed.distributions),
                    user_attrs={TO_RUN: True},
                    system_attrs={RESTORED: True},
                )
            )
        else:
            if there.state == TrialState.WAITING:
                self._storage.set_trial_state_values(there._trial_id, TrialState.RUNNING)
            self.set_params(number, fixed.params, fixed.distributions)
            self.note(number, {TO_RUN: True})
        self._numbers[known] = number
        return number

    def may_become(self, number: int, params: Mapping[str, Any]) -> bool:
        """Return True if the trial with this number is lost, or is undecided and has no conflicting parameters."""
        trials = self.trials
        return number >= len(trials) or _may_become(trials[number], params)

    def learn_from(self, other: optuna.Study) -> int:
        """Copy the complete trials of another study whose parameters fit this space, and return how many.

        Trials that do not fit, and fields that both spaces fix to different values, are logged. Raises `InputError` as
        `check_earlier` does.
        """
        check_earlier(other, self._objective)
        before = {trial.user_attrs[KNOWN] for trial in self.trials if KNOWN in trial.user_attrs}
        complete = other.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        names = {trial.number: f"{other.study_name} {trial.number}" for trial in complete}
        count, unfit = 0, dict[int, str]()
        for trial in complete:
            if names[trial.number] in before:
                continue
            try:
                self._study.add_trial(self._copied(trial, names[trial.number]))
                count += 1
            except InputError as error:
                unfit[trial.number] = str(error)
        if unfit:
            number, why = next(iter(unfit.items()))
            count_text = f"{len(unfit)} of {len(complete)} complete trials of study {other.study_name!r}"
            log.info(f"{count_text} are not of this space and left out: of trial {number}, {why}")
        if count and (fixed := _fixed_otherwise(other.user_attrs.get("space", {}), to_plain(self._tree))):
            log.info(f"study {other.study_name!r} has other fixed fields, which may make its values differ: {fixed}")
        return count

    def _copied(self, trial: FrozenTrial, known_from: str) -> FrozenTrial:
        """Return a complete trial of another study in the form of this study.

        `known_from`: name of the trial. Raises `InputError` if it does not fit the space or lacks a limited metric.
        """
        params = check_point(self._tree, trial.params, "parameters")
        missing = ", ".join(left_open(self._tree, params))
        require(not missing, "parameters", f"without {missing}", "all that are open")
        self.config(params)
        beyond = known_excesses(self._constraints, trial, self._objective.names)
        limited = ", ".join(one.name for one in self._constraints)
        require(beyond is not None, "its record of metrics", f"without some of {limited}", "one with all of them")
        return create_trial(
            params=params,
            distributions={name: distribution(leaves(self._tree)[name]) for name in params},
            values=trial.values,
            user_attrs={KNOWN: known_from},
            constraints=beyond,
        )

    def _suggested(self, trial: Trial) -> TrialConfig:
        """Return a trial's config. Raises `InputError` if it is invalid, or an enqueued value is not in the space."""
        try:
            with warnings.catch_warnings():
                # For enqueued values out of bounds, Optuna only warns.
                warnings.filterwarnings("error", message="Fixed parameter")
                return close(self._tree, trial)
        except InputError:
            raise
        except (ValueError, UserWarning) as error:
            raise InputError(f"a value of an enqueued point is not of the space: {error}") from None

    def _next(self) -> Trial:
        """Return the next trial in Optuna, with its sampler seeded by its number.

        The order is: a trial that an earlier driver had started to propose when it was killed, perhaps with only some
        parameters; a point to draw again; points that were not tried; numbers without any parameters; a new trial.
        """
        trials = self.trials
        undecided = next((trial for trial in trials if _undecided(trial) and not _bare(trial)), None)
        if undecided is None and (point := self._to_draw_again(trials)) is not None:
            again = create_trial(state=TrialState.RUNNING, system_attrs={FIXED: point})
            undecided = self.trial(self.begin(again))
        waiting = next((trial.number for trial in trials if trial.state == TrialState.WAITING), None)
        if undecided is None and waiting is None:
            undecided = next((trial for trial in trials if _bare(trial)), None)
        number = undecided.number if undecided else len(trials) if waiting is None else waiting
        self._study.sampler = make_sampler(self._sampler, self._tree, seed=self._seed, number=number)
        if undecided is None:
            return self._study.ask()
        trial = Trial(self._study, undecided._trial_id)
        # Repeat the draws of the killed driver, so that the remaining parameters get the same values.
        for name, space in undecided.distributions.items():
            if not (name in undecided.system_attrs.get(FIXED, ()) or space.single() or name in trial.relative_params):
                self._study.sampler.sample_independent(self._study, undecided, name, space)
        return trial

    def _to_draw_again(self, trials: Sequence[FrozenTrial]) -> Mapping[str, Any] | None:
        """Return the first point whose draws so far were all skipped and that has draws left; None if there is none."""
        draws: dict[str, list[FrozenTrial]] = {}
        for trial in trials:
            if FIXED in trial.system_attrs:
                draws.setdefault(json.dumps(trial.system_attrs[FIXED], sort_keys=True), []).append(trial)
        for tried in draws.values():
            if len(tried) < REPEATS and all({REPEAT, IMPOSSIBLE} & trial.user_attrs.keys() for trial in tried):
                point = tried[0].system_attrs[FIXED]
                if self._leaves_open(point):
                    return point
        return None

    def _leaves_open(self, point: Mapping[str, Any]) -> bool:
        """Return True if a point is in the space and does not set all parameters."""
        try:
            return bool(left_open(self._tree, check_point(self._tree, point, "a point")))
        except InputError:
            return False

    @property
    def own(self) -> list[FrozenTrial]:
        """Trials of this study that run or ran, without repeats, impossible trials and trials of earlier studies."""
        return [trial for trial in self.trials if TO_RUN in trial.user_attrs]

    def _close(self, trial: FrozenTrial) -> TrialConfig:
        """Return the config of a stored trial. Raises `InputError` if its parameters do not fit the space."""
        what, life = f"trial {trial.number} of study {self._study.study_name!r}", trial.user_attrs.get(LIFE)
        if life is not None:
            lived = isinstance(life, list) and life and isinstance(life[-1], dict) and "params" in life[-1]
            require(bool(lived), f"life of {what}", life, "a list with the parameters of each part")
        params = check_point(self._tree, life[-1]["params"] if life else trial.params, what)
        missing = ", ".join(left_open(self._tree, params))
        require(not missing, f"parameters of {what}", f"without {missing}", "all that are open; its storage is damaged")
        return self.config(params)

    def _check_values(self, trial: FrozenTrial) -> None:
        """Raise `InputError` if a complete trial lacks a finite value for any objective."""
        values, names = trial.values or [], self._objective.names
        holds = trial.state != TrialState.COMPLETE or (len(values) == len(names) and all(map(math.isfinite, values)))
        what = f"values of trial {trial.number} of study {self._study.study_name!r}"
        require(holds, what, values, f"a number for each of {', '.join(names)}; its storage is damaged")

    def _pass_over(self, trial: Trial, why: str, cause: Any) -> None:
        """End a trial that does not run; a repeat of a complete trial ends with the values of that trial.

        `why`: `REPEAT` with the number of the equal trial as `cause`, or `IMPOSSIBLE` with the reason.
        """
        trial.set_user_attr(why, cause)
        point = self.trials[trial.number].system_attrs.get(FIXED)
        if point and self._to_draw_again(self.trials) != point:
            reason = f"trial {cause} is the same" if why == REPEAT else cause
            often = f" after {REPEATS} draws of what it leaves open" if self._leaves_open(point) else ""
            log.info(f"the point {point} is skipped{often}: {reason}")
        twin = self.trials[cause] if why == REPEAT else None
        if twin is not None and twin.state == TrialState.COMPLETE:
            for name, value in twin.constraints.items():
                trial.set_constraint(name, value)
            self._study.tell(trial, twin.values)
        else:
            self._study.tell(trial, state=TrialState.FAIL)


def _undecided(trial: FrozenTrial) -> bool:
    """Return True if it is not decided whether the trial runs, because the driver was killed before."""
    return trial.state == TrialState.RUNNING and TO_RUN not in trial.user_attrs


def _bare(trial: FrozenTrial) -> bool:
    """Return True if a trial is undecided and has no parameters yet."""
    return _undecided(trial) and not trial.params and FIXED not in trial.system_attrs


def _may_become(trial: FrozenTrial, params: Mapping[str, Any]) -> bool:
    """Return True if a trial is undecided or waiting, and its known parameters agree with `params`."""
    known = trial.params | trial.system_attrs.get(FIXED, {})
    return (_undecided(trial) or trial.state == TrialState.WAITING) and known.items() <= params.items()


def _open(
    storage: BaseStorage, name: str, settings: dict[str, Any], objective: Objective, earlier: Mapping[str, Any]
) -> optuna.Study:
    """Create the study `name` with `settings` as user attributes, or load it.

    `earlier`: settings that earlier versions stored in another form. Raises `InputError` if the study exists with other
    settings; it is left unchanged then.
    """
    stored = optuna.get_all_study_summaries(storage, include_best_trial=False)
    summary = next((summary for summary in stored if summary.study_name == name), None)
    stored_settings = {} if summary is None else summary.user_attrs
    # An incomplete study was left by a driver that was killed while creating it.
    begun = summary is not None and (MADE in stored_settings or summary.n_trials > 0)
    if begun or VERSION in stored_settings:
        check_numbers(name, stored_settings)
    for key, value in settings.items():
        if begun or key in stored_settings:
            _check_setting(name, key, stored_settings.get(key, []), value, earlier.get(key))
    if summary is not None:
        found = [direction.name.lower() for direction in summary.directions]
        accepted = f"{' '.join(objective.directions)}, or another --out or --study"
        require(
            found == objective.directions, f"direction of the objectives of study {name!r}", " ".join(found), accepted
        )
    if begun:
        return optuna.load_study(study_name=name, storage=storage)
    with quiet():
        study = optuna.create_study(
            study_name=name, storage=storage, directions=objective.directions, load_if_exists=True
        )
        study.set_metric_names(list(objective.names))
    for key, value in {VERSION: NUMBERS, **settings}.items():
        if value and key not in stored_settings:
            study.set_user_attr(key, value)
    return study


def _check_setting(name: str, key: str, before: Any, now: Any, earlier: Any) -> None:
    """Raise `InputError` if a setting differs; log it if the study has it in the form of `earlier` versions."""
    if before == json.loads(json.dumps(now)):
        return
    if before != earlier:
        raise InputError(_difference(name, key, before, now))
    log.info(f"study {name!r} is continued with {key} {_short(now)}, which it stores as {_short(before)}")


def check_numbers(name: str, attributes: Mapping[str, Any]) -> None:
    """Raise `InputError` if the version of the numbers in the user attributes of study `name` is not `NUMBERS`."""
    found, accepted = attributes.get(VERSION, 1), f"{NUMBERS}, that of this program; or another --out, or --study"
    require(found == NUMBERS, f"version of the numbers of study {name!r}", found, accepted)


def check_earlier(study: optuna.Study, objective: Objective) -> None:
    """Raise `InputError` if an earlier study has another version of the numbers, other objectives or directions."""
    check_numbers(study.study_name, study.user_attrs)
    names = study.user_attrs.get("objective") or study.metric_names
    directions = [direction.name.lower() for direction in study.directions]
    what, accepted = f"objective of study {study.study_name!r}", " ".join(objective.names)
    require(names is None or list(names) == list(objective.names), what, " ".join(names or ()), accepted)
    require(directions == objective.directions, f"direction of {what}", " ".join(directions), f"that of {accepted}")


def _fixed_otherwise(other: Tree, own: Tree) -> str:
    """Return the fields that both spaces fix to different values, each with both values."""
    theirs, ours = flattened(other), flattened(own)
    both = [name for name in theirs if name in ours and "!" not in name and theirs[name] != ours[name]]
    return ", ".join(f"{name} {theirs[name]!r} there and {ours[name]!r} here" for name in both)


def _difference(name: str, key: str, before: Any, now: Any) -> str:
    """Return the message for a study whose setting `key` is `before`, while that of this run is `now`."""
    if key == "plugins":
        made, same = f"with plug-ins {_listed(before)}; this run has {_listed(now)}", "plug-in versions"
    else:
        made, same = f"for {'other' if key.endswith('s') else 'another'} {key}, {_short(before)}", key
    return f"study {name!r} was made {made}; accepted: the same {same}, or another --out or --study"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
