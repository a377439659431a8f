"""The study: every trial that was proposed, what is known of it, and how it ended. All of a search's state is here.

One process writes it, the driver.
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
"""Proposals in a row that are no new trial, after which the space is taken to hold no other; and times that what a
point leaves open is drawn (our choice)."""
GPU_SECONDS = "gpu_seconds"
PRECISION = "precision"
"""User attribute of a study: in which those of its trials compute that leave it to the hardware."""
VERSION = "numbers"
"""User attribute of a study: the `NUMBERS` that its values are of; 1 where it is missing."""
MADE = "objective"
"""User attribute of a study: the names of its objectives, told last: what lacks it and has no trial is half made."""
LIFE = "life"
"""User attribute: of a member of a population, its parameters so far, see `population`."""
TO_RUN, REPEAT, IMPOSSIBLE, KNOWN = "to_run", "repeats", "impossible", "known_from"
"""User attributes: of trials that are to be run, and of those that are not, being equal to an earlier one, no valid
config, or of an earlier study."""
FIXED = "fixed_params"
"""System attribute, Optuna's: the values of the point that a trial was asked for by."""
TAKEN_BACK = "taken_back"
"""System attribute: of trials that the study had lost, and has from their records."""


class TrialLog:
    """What is written down of the trials of the study `name`, which is in `storage` already, by their numbers.

    Anything may be told twice, as by a trial that was killed: it counts once; and of a trial that is over nothing more
    is written down. No call but a pruner's looks at more than one trial, so that none takes longer the more there are.
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


@dataclass(frozen=True)
class Proposal:
    """A trial to be run, by its number in the study."""

    number: int
    config: TrialConfig
    params: Mapping[str, Any]


class Study(TrialLog):
    """A study in `storage`, new or as an earlier driver has left it.

    Raises `InputError` where a study of that name has another space or other objectives.
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
        asked = {"space": to_plain(tree), "constraints": limits, "population": list(population)}
        asked |= {"plugins": plugins(tree)}
        self._study = _open(storage, name, asked | {MADE: list(objective.names)}, objective)
        super().__init__(storage, name, objective, pruner=pruner)
        self._numbers = {content_hash(self._close(trial)): trial.number for trial in reversed(self.own)}
        for trial in self.finished:
            self._check_values(trial)

    @property
    def alone(self) -> bool:
        """Whether its storage holds no other study."""
        return len(optuna.get_all_study_names(self._storage)) == 1

    @property
    def finished(self) -> list[FrozenTrial]:
        """Those that were run to an end, each once: complete, pruned or failed."""
        return [trial for trial in self.own if trial.state.is_finished()]

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Complete trials that keep to all limits, the best by the first objective first; of equal ones the earlier."""
        complete = [trial for trial in self.finished if trial.state == TrialState.COMPLETE]
        allowed = [trial for trial in complete if all(excess <= 0 for excess in trial.constraints.values())]
        sign = 1 if self._objective.directions[0] == "minimize" else -1
        return sorted(allowed, key=lambda trial: (sign * trial.values[0], trial.number))

    @property
    def front(self) -> list[FrozenTrial]:
        """Complete trials that no other is better than in every objective; with one objective just one."""
        if not self._objective.several:
            return self.ranked[:1]
        best = {trial.number for trial in self._study.best_trials}
        return [trial for trial in self.ranked if trial.number in best]

    @property
    def gpu_seconds(self) -> float:
        """What its trials have held of GPUs, in all runs."""
        return self._study.user_attrs.get(GPU_SECONDS, 0.0)

    def keep_gpu_seconds(self, used: float) -> None:
        """Write down what its trials have held of GPUs by now."""
        self._study.set_user_attr(GPU_SECONDS, used)

    def keep_to(self, precision: str | None) -> None:
        """Its trials compute in `precision`. Raises `InputError` where earlier ones did in another."""
        before = self._study.user_attrs.get(PRECISION, precision)
        accepted = f"{before}, that of its trials so far: the same --gpus-per-trial, or another --out or --study"
        require(before == precision, f"precision of study {self._study.study_name!r}", precision, accepted)
        self._study.set_user_attr(PRECISION, precision)

    def left_running(self) -> list[Proposal]:
        """What an earlier driver had begun and not ended, first to last."""
        return [self.proposal(trial) for trial in self.own if trial.state == TrialState.RUNNING]

    def proposal(self, trial: FrozenTrial) -> Proposal:
        """A trial of this study as it was proposed."""
        return Proposal(trial.number, self._close(trial), trial.params)

    def config(self, params: Mapping[str, Any]) -> TrialConfig:
        """What these values of its open leaves make of the space."""
        return close(self._tree, FixedTrial(dict(params)))

    def propose(self, check: Callable[[TrialConfig], None] = lambda config: None) -> Proposal | None:
        """A trial that no other equals and that `check` lets pass, which raises `InputError` where it cannot be run.

        None where the space seems to hold none.
        """
        # Optuna tells its developers of a space that seems to have conditions, or of a grid that is full.
        with quiet(optuna.logging.ERROR):
            return self._propose(check)

    def _propose(self, check: Callable[[TrialConfig], None]) -> Proposal | None:
        left, again = REPEATS, self._to_come_again()
        while left:
            trial = self._next()
            # Of points there are only so many.
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
                # As it was the first time, when this was no repeat.
                left = REPEATS
                again.remove(twin)
        return None

    def _to_come_again(self) -> set[int]:
        """Trials of which a repeat says nothing of the space: they were lost, and their order begins anew."""
        if self._sampler not in IN_ORDER:
            return set()
        trials = self.trials
        back = {trial.number for trial in trials if TAKEN_BACK in trial.system_attrs}
        return back - {trial.user_attrs[REPEAT] for trial in trials if REPEAT in trial.user_attrs}

    def suggest_first(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Have these values of parameters tried before any others; those that were asked for before are not again.

        What a point leaves open is drawn, and drawn again, up to `REPEATS` times in all, where that makes no new trial
        that can be run. A point that ran when its trial was lost gets the number that it had, if that is known.
        """
        with quiet():
            for number, point in self._untried(points):
                there = self.trials[number] if number < len(self.trials) else None
                if there is not None and _bare(there):
                    self._storage.set_trial_system_attr(there._trial_id, FIXED, point)
                else:
                    self._study.enqueue_trial(point, skip_if_exists=True)

    def _untried(self, points: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """Points that the study neither has nor has had; each with the number it has in a study that begins with them.

        A trial that was taken back does not say which point it was. It was the one whose number it has, and that it
        fits; else any that it fits, but for one whose number ran when it was lost.
        """
        trials = self.trials
        known = sum(1 for _ in itertools.takewhile(lambda trial: KNOWN in trial.user_attrs, trials))
        asked = [trial.system_attrs[FIXED] for trial in trials if FIXED in trial.system_attrs]
        back = {trial.number: trial.params for trial in self.own if TAKEN_BACK in trial.system_attrs}
        unlike = list[dict[str, Any]]()
        for point in map(dict, points):
            if point not in unlike:
                unlike.append(point)
        numbered = list(enumerate(unlike, known))
        placed = {number for number, point in numbered if point.items() <= back.get(number, {}).items()}
        others = [params for number, params in back.items() if number not in placed]

        def tried(number: int, point: dict[str, Any]) -> bool:
            if number in placed or point in asked or point in back.values():
                return True
            ran = number < len(trials) and _bare(trials[number])
            return not ran and any(point.items() <= params.items() for params in others)

        return [(number, point) for number, point in numbered if not tried(number, point)]

    def take_back(self, number: int, params: Mapping[str, Any], begun: Container[int]) -> int:
        """Have a trial with these parameters of all open leaves run that the study has lost; its number.

        That is the given one, unless it is another trial's, or the study has a trial of the same config. Of numbers up
        to it that are lost, too, those `begun` are decided anew, as they were the first time: nobody knows what they
        were. The others were none to be run.
        """
        fixed = FixedTrial(dict(params))
        known = content_hash(close(self._tree, fixed))
        if known in self._numbers:
            return self._numbers[known]
        for lost in range(len(self.trials), number):
            self.begin(create_trial(state=TrialState.RUNNING))
            if lost not in begun:
                self.fail(lost, "passed over, as far as is known: the study had lost it")
        there = self.trials[number] if number < len(self.trials) else None
        if there is None or not _may_become(there, params):
            number = self.begin(
                create_trial(
                    state=TrialState.RUNNING,
                    params=fixed.params,
                    distributions=dict(fixed.distributions),
                    user_attrs={TO_RUN: True},
                    system_attrs={TAKEN_BACK: True},
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
        """Whether the trial of that number is lost, or not decided and so far none with other parameters."""
        trials = self.trials
        return number >= len(trials) or _may_become(trials[number], params)

    def learn_from(self, other: optuna.Study) -> int:
        """Take over the complete trials of another study whose parameters are of this space; how many there were.

        Those that are not, and fields of the space that are fixed to other values there, are told of. Raises
        `InputError` as `check_earlier` does.
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
            told = (
                f"{len(unfit)} of {len(complete)} complete trials of study {other.study_name!r} are not of this space"
            )
            log.info(f"{told} and left out: of trial {number}, {why}")
        if count and (fixed := _fixed_otherwise(other.user_attrs.get("space", {}), to_plain(self._tree))):
            log.info(f"study {other.study_name!r} has other fixed fields, which may make its values differ: {fixed}")
        return count

    def _copied(self, trial: FrozenTrial, known_from: str) -> FrozenTrial:
        """A complete trial of another study as one of this. Raises `InputError` where its parameters are not its."""
        params = check_point(self._tree, trial.params, "parameters")
        missing = ", ".join(left_open(self._tree, params))
        require(not missing, "parameters", f"without {missing}", "all that are open")
        self.config(params)
        beyond = known_excesses(self._constraints, trial, self._objective.names)
        limited = ", ".join(one.name for one in self._constraints)
        require(beyond is not None, "what is told of it", f"not all of {limited}", "all that is limited")
        return create_trial(
            params=params,
            distributions={name: distribution(leaves(self._tree)[name]) for name in params},
            values=trial.values,
            user_attrs={KNOWN: known_from},
            constraints=beyond,
        )

    def _suggested(self, trial: Trial) -> TrialConfig:
        """The config of a trial. Raises `InputError` also where a value was asked for that is none of the space."""
        try:
            with warnings.catch_warnings():
                # Optuna runs what is out of bounds all the same.
                warnings.filterwarnings("error", message="Fixed parameter")
                return close(self._tree, trial)
        except InputError:
            raise
        except (ValueError, UserWarning) as error:
            raise InputError(f"a value that was asked for is not of the space: {error}") from None

    def _next(self) -> Trial:
        """A new trial; first the one that an earlier driver was killed over, whose parameters may not all be chosen.

        Then a point that is to be drawn again, those that were not tried yet, and numbers that nothing is known of.
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
        # The rest shall be what it would have been: the sampler has drawn these before it.
        for name, space in undecided.distributions.items():
            if not (name in undecided.system_attrs.get(FIXED, ()) or space.single() or name in trial.relative_params):
                self._study.sampler.sample_independent(self._study, undecided, name, space)
        return trial

    def _to_draw_again(self, trials: Sequence[FrozenTrial]) -> Mapping[str, Any] | None:
        """The first point of which every draw so far was passed over, and that may be drawn once more."""
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
        """Whether it is of the space, and does not say all of a trial."""
        try:
            return bool(left_open(self._tree, check_point(self._tree, point, "a point")))
        except InputError:
            return False

    @property
    def own(self) -> list[FrozenTrial]:
        """Those that were to be run, each once."""
        return [trial for trial in self.trials if TO_RUN in trial.user_attrs]

    def _close(self, trial: FrozenTrial) -> TrialConfig:
        """Its config. Raises `InputError` where its parameters are not of the space, as after a loss of lines."""
        what, life = f"trial {trial.number} of study {self._study.study_name!r}", trial.user_attrs.get(LIFE)
        if life is not None:
            lived = isinstance(life, list) and life and isinstance(life[-1], dict) and "params" in life[-1]
            require(bool(lived), f"life of {what}", life, "a list with the parameters of each part")
        params = check_point(self._tree, life[-1]["params"] if life else trial.params, what)
        missing = ", ".join(left_open(self._tree, params))
        require(not missing, f"parameters of {what}", f"without {missing}", "all that are open; its storage is damaged")
        return self.config(params)

    def _check_values(self, trial: FrozenTrial) -> None:
        """Raise `InputError` where a complete trial has not a value for each objective."""
        values, names = trial.values or [], self._objective.names
        holds = trial.state != TrialState.COMPLETE or (len(values) == len(names) and all(map(math.isfinite, values)))
        what = f"values of trial {trial.number} of study {self._study.study_name!r}"
        require(holds, what, values, f"a number for each of {', '.join(names)}; its storage is damaged")

    def _pass_over(self, trial: Trial, why: str, told: Any) -> None:
        """End a trial that is not to be run; a repeat of a complete one with its values, which are just as true."""
        trial.set_user_attr(why, told)
        point = self.trials[trial.number].system_attrs.get(FIXED)
        if point and self._to_draw_again(self.trials) != point:
            cause = f"trial {told} is the same" if why == REPEAT else told
            often = f", {REPEATS} draws of what it leaves open, too" if self._leaves_open(point) else ""
            log.info(f"the point {point} is passed over{often}: {cause}")
        twin = self.trials[told] if why == REPEAT else None
        if twin is not None and twin.state == TrialState.COMPLETE:
            for name, value in twin.constraints.items():
                trial.set_constraint(name, value)
            self._study.tell(trial, twin.values)
        else:
            self._study.tell(trial, state=TrialState.FAIL)


def _undecided(trial: FrozenTrial) -> bool:
    """Whether its driver was killed before it was to be run, or not to be."""
    return trial.state == TrialState.RUNNING and TO_RUN not in trial.user_attrs


def _bare(trial: FrozenTrial) -> bool:
    """Whether it is not decided, and nothing says as yet what it will be."""
    return _undecided(trial) and not trial.params and FIXED not in trial.system_attrs


def _may_become(trial: FrozenTrial, params: Mapping[str, Any]) -> bool:
    """Whether it is not decided what it is, and it may be the one with these parameters."""
    told = trial.params | trial.system_attrs.get(FIXED, {})
    return (_undecided(trial) or trial.state == TrialState.WAITING) and told.items() <= params.items()


def _open(storage: BaseStorage, name: str, asked: dict[str, Any], objective: Objective) -> optuna.Study:
    """The study, told what it is for; one that was told otherwise before is refused and left as it was."""
    stored = optuna.get_all_study_summaries(storage, include_best_trial=False)
    summary = next((summary for summary in stored if summary.study_name == name), None)
    told = {} if summary is None else summary.user_attrs
    # Else its driver was killed while it made it.
    begun = summary is not None and (MADE in told or summary.n_trials > 0)
    if begun or VERSION in told:
        check_numbers(name, told)
    for key, value in asked.items():
        if (begun or key in told) and told.get(key, []) != json.loads(json.dumps(value)):
            made = f"study {name!r} was made for another {key}, {_short(told.get(key, []))}"
            raise InputError(f"{made}; accepted: the same {key}, or another --out or --study")
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
    for key, value in {VERSION: NUMBERS, **asked}.items():
        if value and key not in told:
            study.set_user_attr(key, value)
    return study


def check_numbers(name: str, attributes: Mapping[str, Any]) -> None:
    """Raise `InputError` where the study with these user attributes holds values of another version of the numbers."""
    found, accepted = attributes.get(VERSION, 1), f"{NUMBERS}, that of this program; or another --out, or --study"
    require(found == NUMBERS, f"version of the numbers of study {name!r}", found, accepted)


def check_earlier(study: optuna.Study, objective: Objective) -> None:
    """Raise `InputError` where the values of an earlier study are of other numbers, or of another objective."""
    check_numbers(study.study_name, study.user_attrs)
    names = study.user_attrs.get("objective") or study.metric_names
    directions = [direction.name.lower() for direction in study.directions]
    what, accepted = f"objective of study {study.study_name!r}", " ".join(objective.names)
    require(names is None or list(names) == list(objective.names), what, " ".join(names or ()), accepted)
    require(directions == objective.directions, f"direction of {what}", " ".join(directions), f"that of {accepted}")


def _fixed_otherwise(other: Tree, own: Tree) -> str:
    """Fields that both spaces fix, to different values: each with both."""
    theirs, ours = flattened(other), flattened(own)
    both = [name for name in theirs if name in ours and "!" not in name and theirs[name] != ours[name]]
    return ", ".join(f"{name} {theirs[name]!r} there and {ours[name]!r} here" for name in both)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
