"""A search: Optuna proposes configs of a space, the cluster runs them, and the study in the output folder remembers."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import TrialState

from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.files import bury, empty
from condkd_ray.core.config import content_hash, to_tree
from condkd_ray.core.environment import default_device
from condkd_ray.core.method import InputError, Metrics, require
from condkd_ray.core.records import Outcome, Record, read_records, write_manifest
from condkd_ray.core.storage import check_writable
from condkd_ray.core.view import SILENT, Best, Goal, View
from condkd_ray.runs import experiment
from condkd_ray.runs.estimate import explain_search
from condkd_ray.runs.options import Options, RunResult, SearchSpec
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.runs.recorder import Recorder, StudyWriter, describe_experiment, teacher_line
from condkd_ray.study.objective import feasible
from condkd_ray.study.population import Member, Population, check_population
from condkd_ray.study.space import default, leaves
from condkd_ray.study.storage import holds, open_storage, stored_study
from condkd_ray.study.strategies import check_pruner, check_sampler, make_pruner
from condkd_ray.study.study import Proposal, Study
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial, trial_hash

log = logging.getLogger(__name__)


def run(question: str, tree: dict[str, Any], spec: SearchSpec, *, view: View = SILENT) -> RunResult:
    """Run what is missing of a search of the space `tree`, and write down what came of it. Raises `InputError`."""
    deadline = time.time() + spec.budget_seconds
    check(tree, spec)
    workshop = Workshop(spec.cache, device=default_device(), view=view)
    open_folder(spec.out, "search", fresh=spec.fresh)
    if spec.storage is not None:
        check_writable(spec.place)
    if spec.fresh:
        empty(spec.place)
    study = study_of(tree, spec)
    _teach(study, spec)
    with connect(spec.address, view=view):
        # These import Ray, which takes a second.
        from condkd_ray.cluster import search as ray_search
        from condkd_ray.cluster.storage_check import check_reach

        check_reach(spec.place, spec.place_flag)
        budget = None
        if spec.gpu_hours is not None:
            budget = ray_search.GpuBudget(3600 * spec.gpu_hours, study.gpu_seconds, study.keep_gpu_seconds)
        # First, as it begins trials of the study.
        population = None
        if spec.population:
            sizes = {"size": spec.population, "rounds": spec.generation_rounds, "total": default(tree).total_rounds}
            population = Population(study, tree, **sizes, seed=spec.sampler_seed)
        recorder = SearchRecorder(question, study, tree, workshop, spec, view)
        driver = PopulationDriver(recorder, population) if population else SearchDriver(recorder)
        try:
            complete = ray_search.search(driver, spec.of_cluster(deadline), budget)
        finally:
            recorder.records.close()
        recorder.describe(over=True)
        if complete and isinstance(driver, PopulationDriver):
            bury(spec.place, driver.leftovers())
    budgets = {"time": time.time() >= deadline, "GPU": budget is not None and budget.spent}
    return RunResult(spec.out, complete, recorder.records.failed, tuple(name for name, over in budgets.items() if over))


def explained(tree: dict[str, Any], spec: SearchSpec, *, view: View = SILENT) -> str:
    """What the rest of a search will take, as text. Raises `InputError` as `run` would."""
    check(tree, spec)
    # A fresh folder has a fresh study, unless that lies elsewhere.
    anew, ended = spec.fresh and spec.study_storage is None, 0
    if not anew and holds(spec.study_storage, spec.out, spec.study):
        ended = len(study_of(tree, spec).finished)
    shortest = 1.0 if spec.pruner == "none" else spec.least_rounds / _rounds(tree)
    kept = {"trials": spec.wanted - ended, "shortest": min(1.0, shortest)}
    return explain_search(tree, spec, default_device(), view, **kept)


def check(tree: dict[str, Any], spec: SearchSpec) -> None:
    """Raise `InputError` for what cannot be searched, or not so."""
    spec.check()
    assert spec.parsed_objective
    require(spec.trials >= 1, "--trials", spec.trials, "an integer >= 1")
    hours, gpus = spec.gpu_hours, spec.gpus_per_trial
    require(hours is None or hours > 0, "--gpu-hours", hours, "a number > 0")
    require(hours is None or gpus > 0, "--gpus-per-trial with --gpu-hours", gpus, "a number > 0: they would never end")
    require(spec.least_rounds >= 1, "--least-rounds", spec.least_rounds, "an integer >= 1")
    require(bool(leaves(tree)), "open leaves of the space", 0, "at least one, such as `weight: !log_uniform [1, 100]`")
    check_sampler(spec.chosen_sampler, tree, constrained=bool(spec.parsed_constraints))
    check_pruner(spec.pruner, spec.parsed_objective)
    if spec.population:
        _check_population(tree, spec)


def _check_population(tree: dict[str, Any], spec: SearchSpec) -> None:
    check_population(spec.population, spec.generation_rounds, _rounds(tree), tree, spec.parsed_objective)
    require(spec.chosen_sampler == "random", "--sampler with --population", spec.sampler, "random")
    others = {"pruner": "none", "constraint": (), "points": None, "learn_from": (), "share": "trial"}
    for name, accepted in others.items():
        given, flag = getattr(spec, name), name.replace("_", "-")
        require(given == accepted, f"--{flag} with --population", given, accepted or "none")


def study_of(tree: dict[str, Any], spec: SearchSpec) -> Study:
    """The study that a search of this spec writes, new or as it was left."""
    return Study(
        *(open_storage(spec.study_storage, spec.out), spec.study, tree, spec.parsed_objective),
        sampler=spec.chosen_sampler,
        seed=spec.sampler_seed,
        pruner=make_pruner(spec.pruner, least=spec.least_rounds, most=_rounds(tree)),
        constraints=spec.parsed_constraints,
        population=(spec.population, spec.generation_rounds) if spec.population else (),
    )


def _rounds(tree: dict[str, Any]) -> int:
    rounds = tree.get("rounds", 12)
    return rounds if isinstance(rounds, int) else max(rounds.values)


def _teach(study: Study, spec: SearchSpec) -> None:
    for place in spec.learn_from:
        storage, _, name = place.rpartition("#")
        other = stored_study(open_storage(storage or place, spec.out), name, place)
        log.info(f"{study.learn_from(other)} trials known from {place}")
    if spec.points is not None:
        study.suggest_first(_points(spec.points))


def _points(path: Path) -> list[Mapping[str, Any]]:
    try:
        points = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--points is {str(path)!r}, which cannot be read ({error}); accepted: a YAML list") from None
    fine = isinstance(points, list) and all(isinstance(point, dict) for point in points)
    require(fine, "--points", str(path), "a YAML list of mappings from parameters to values")
    return points


def confirm(
    tree: dict[str, Any], spec: SearchSpec, *, best: int, seeds: Sequence[int], view: View = SILENT
) -> RunResult:
    """Run the best trials of a finished search again with other seeds, beside the space's default, and compare these.

    Results lie in `confirmed` below the search's.
    """
    seen = default(tree).seed
    require(best >= 1, "--best", best, "an integer >= 1")
    require(seen not in seeds and len(set(seeds)) == len(seeds) > 0, "--new-seeds", seeds, f"seeds other than {seen}")
    study = study_of(tree, spec)
    arms = {"default": default(tree)}
    arms |= {f"trial {trial.number}": study.proposal(trial).config for trial in study.ranked[:best]}
    twins = {config: arm for arm, config in reversed(arms.items())}
    plans = [
        Plan(arm, config.ipc, seed, dataclasses.replace(config, seed=seed), spec.share)
        for config, arm in reversed(twins.items())
        for seed in seeds
    ]
    kept = {field.name: getattr(spec, field.name) for field in dataclasses.fields(Options)}
    apart = {"out": spec.out / "confirmed", "storage": spec.storage and _below(spec.storage, "confirmed")}
    question = f"Are the best {best} trials of the search better than the default with new seeds?"
    return experiment.run("confirm", question, plans, Options(**kept | apart), baseline="default", view=view)


def _below(storage: str, name: str) -> str:
    """A folder in a storage, whose address may have options behind a question mark."""
    path, mark, options = storage.partition("?")
    return f"{path}/{name}{mark}{options}"


class SearchRecorder:
    """Makes trials of a study's numbers, and writes down what is heard of them: study, records, events and manifest.

    A driver may have died at any moment. `left`: what earlier drivers have begun and not brought to its end; `begun`:
    the number of trials so far, these included.
    """

    def __init__(
        self,
        question: str,
        study: Study,
        tree: dict[str, Any],
        workshop: Workshop,
        spec: SearchSpec,
        view: View = SILENT,
    ) -> None:
        self.study, self.workshop, self.spec = study, workshop, spec
        self._question, self._tree = question, tree
        self._kinds: dict[Any, PlannedTrial] = {}
        self._newest: dict[str, PlannedTrial] = {}
        self.numbers: dict[str, int] = {}
        """Of trials in the study, by key."""
        objective = spec.parsed_objective
        self._writer = StudyWriter(study, objective, spec.out, spec.parsed_constraints)
        records = {record.config_hash: record for record in read_records(spec.out)}
        self._settle(records)
        self.left = [*study.left_running(), *self._unrecorded(records)]
        self.begun = len(study.finished) + len(study.left_running())
        named = {name.replace("/", "."): leaf for name, leaf in leaves(tree).items()}
        self.records = Recorder(
            *("search", spec.out, [], spec.place),
            total=spec.wanted - self.begun + len(self.left),
            choices={name: leaf.examples for name, leaf in named.items() if leaf.kind == "choice"},
            ranges={name: leaf.values for name, leaf in named.items() if leaf.kind != "choice"},
            goal=Goal(objective.names[0], objective.directions[0] == "maximize", decides=True),
            best=next((Best(f"trial {t.number}", t.values[0], t.params) for t in study.ranked[:1]), None),
            view=view,
        )

    def plan(self, number: int, config: TrialConfig) -> PlannedTrial[Prepared]:
        """The trial of that number, prepared, named by the hash of its config."""
        prepared, scope = self.workshop.prepare(config), self.spec.share
        plan = Plan(f"trial {number}", config.ipc, config.seed, config, scope)
        return PlannedTrial(trial_hash(config, prepared, scope), plan, prepared)

    def begin(self, number: int, trial: PlannedTrial[Prepared], params: Mapping[str, Any]) -> None:
        """From now on the trial of that number may be heard of: in the study, on all screens and in the manifest."""
        if not self._kinds:
            log.info(teacher_line(describe_experiment("search", "", [trial], self.workshop, self.spec.out)))
        self.numbers[trial.key], self._newest[trial.key] = number, trial
        self._kinds.setdefault((trial.config.teacher, type(trial.config.condensation)), trial)
        self.study.note(number, {"config_hash": trial.key, "teacher_hash": trial.prepared.hashes["teacher"]})
        self.records.add(trial, params)
        self.describe()

    def round(self, trial: PlannedTrial[Prepared], metrics: Metrics) -> None:
        """A trial has ended a round."""
        self.records.round(trial, metrics)
        self._writer.round(self.numbers[trial.key], metrics)

    def recorded(self, trial: PlannedTrial[Prepared], outcome: Outcome) -> None:
        """A trial is over: it gets its record. One that was stopped or failed has to be `concluded` after it."""
        self.records.ended(trial, outcome, candidate=feasible(self.spec.parsed_constraints, outcome.history))

    def concluded(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """The study is told how a trial has ended. From here on nothing that decides hears of it."""
        self._writer.ended(self.numbers[trial.key], trial.key, to_tree(trial.config), outcome)

    def describe(self, *, over: bool = False) -> None:
        """Write the manifest of what has been proposed so far; when all is `over` with the CPU seconds that it took."""
        if not self._kinds:
            return
        # Of each kind one, for the teachers and the notes.
        told = {trial.key: trial for trial in self._kinds.values()} | self._newest
        out = self.spec.out
        manifest = describe_experiment("search", self._question, list(told.values()), self.workshop, out)
        about = {
            "objective": list(self.spec.parsed_objective.names),
            "directions": self.spec.parsed_objective.directions,
            "constraints": [one.text for one in self.spec.parsed_constraints],
            "parameters": list(leaves(self._tree)),
        }
        spent = self.records.clock.look() if over else None
        write_manifest(out, dataclasses.replace(manifest, search=about, cpu_seconds=spent))
        self._newest.clear()

    def _settle(self, records: Mapping[str, Record]) -> None:
        """Tell the study of trials that were stopped or failed, whose driver died when they had just their records."""
        for proposal in self.study.left_running():
            record = records.get(self.study.trial(proposal.number).user_attrs.get("config_hash", ""))
            if record is not None and record.status in ("pruned", "failed"):
                self._writer.ended(proposal.number, record.config_hash, record.config, record.outcome)

    def _unrecorded(self, records: Mapping[str, Record]) -> list[Proposal]:
        """Trials of which the study knows the end, whose driver died before it had made their records: tests are left.

        One that has failed may be among them, for a value that is not finite.
        """
        found = []
        for trial in self.study.finished:
            record = records.get(trial.user_attrs["config_hash"])
            if record is None or (trial.state == TrialState.COMPLETE and record.status != "finished"):
                found.append(self.study.proposal(trial))
        return found


class SearchDriver:
    """A `cluster.search.Proposer` that asks the study for the trials of its spec."""

    def __init__(self, recorder: SearchRecorder) -> None:
        self._recorder, self._study = recorder, recorder.study
        self._left, self._begun = list(recorder.left), recorder.begun
        self._last: dict[str, int] = {}

    def propose(self) -> PlannedTrial[Prepared] | None:
        """What an earlier driver had begun, then what the study proposes, until there are enough."""
        if self._left:
            return self._trial(self._left.pop(0))
        if self._begun >= self._recorder.spec.trials:
            return None
        proposal = self._study.propose(self._recorder.workshop.check)
        if proposal is None:
            log.info(f"the space holds no more than {self._begun} trials, or they are hard to find")
            return None
        self._begun += 1
        return self._trial(proposal)

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Shown, and told the study."""
        self._last[trial.key] = int(metrics["round"])
        self._recorder.round(trial, metrics)

    def goes_on(self, trial: PlannedTrial) -> bool:
        """Unless the study's pruner would end it; after its last round a trial is complete."""
        over = self._last.get(trial.key, 0) >= trial.config.total_rounds
        return over or not self._study.should_prune(self._recorder.numbers[trial.key])

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """The study is told how it ended."""
        self._recorder.concluded(trial, outcome)

    def rested(self, trial: PlannedTrial) -> None:
        """None ever rests."""
        raise AssertionError("a trial of a search goes on to its end")

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """It gets its record, and one that was stopped or failed before the study hears of it."""
        self._recorder.recorded(trial, outcome)
        self._recorder.concluded(trial, outcome)

    def _trial(self, proposal: Proposal) -> PlannedTrial[Prepared]:
        trial = self._recorder.plan(proposal.number, proposal.config)
        self._recorder.begin(proposal.number, trial, proposal.params)
        return trial


class PopulationDriver:
    """A `cluster.search.Proposer` of a population.

    A member is one trial of the study, one run in TensorBoard and one record; on the cluster each of its generations is
    a trial of its own, that starts from what another has left.
    """

    def __init__(self, recorder: SearchRecorder, population: Population) -> None:
        self._recorder, self._study, self._population = recorder, recorder.study, population
        self._members: dict[int, PlannedTrial[Prepared]] = {}
        self._numbers: dict[str, int] = {}
        self._rounds: dict[int, int] = {}
        self._running = set[str]()
        self._queue = [proposal.number for proposal in recorder.left if self._study.over(proposal.number)]

    def propose(self) -> PlannedTrial[Prepared] | Literal["later"] | None:
        """A member's generation; the next one begins when all have ended this."""
        if not self._queue and self._running:
            return "later"
        if not self._queue:
            self._queue = [member.number for member in self._population.open()]
        if self._queue:
            return self._generation(self._queue.pop(0))
        # Where all members came to nothing in a generation, there is no state to go on from.
        for member in self._population.members:
            if not member.trial.state.is_finished():
                self._population.settle(member.number)
                self._study.fail(member.number, member.life[-1].get("failed", "no member is left"))
        return None

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Shown, and told the study; but for what its state has been through under another member."""
        number, round = self._numbers[trial.key], int(metrics["round"])
        if round > self._rounds.get(number, 0):
            self._rounds[number] = round
            self._recorder.round(self._members[number], metrics)

    def goes_on(self, trial: PlannedTrial) -> bool:
        """Until it rests."""
        return True

    def rested(self, trial: PlannedTrial) -> None:
        """A member has ended a generation."""
        self._running.discard(trial.key)
        self._population.rested(self._numbers[trial.key])

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """The study is told how a member has ended, under the last of its parameters."""
        number = self._numbers[trial.key]
        self._population.settle(number)
        self._recorder.concluded(self._members[number], outcome)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """It gets its record; or it came to nothing in a generation after which it can take over another's state."""
        number = self._numbers[trial.key]
        self._running.discard(trial.key)
        if outcome.status == "failed" and trial.lineage.rests is not None:
            log.info(f"{trial.label}: {outcome.reason}; it goes on from another's state")
            return self._population.rested(number, outcome.reason)
        self._recorder.recorded(self._members[number], outcome)
        self.untested(trial, outcome)

    def _generation(self, number: int) -> PlannedTrial[Prepared]:
        """The generation of a member that it has begun last."""
        member = Member(self._study.trial(number))
        generation = len(member.life) - 1
        planned = self._recorder.plan(number, self._study.proposal(member.trial).config)
        first = trial_hash(self._study.config(member.life[0]["params"]), planned.prepared)
        own = dataclasses.replace(planned, key=content_hash([first, number, list(self._population.settings)]))
        self._members[number] = own
        self._recorder.begin(number, own, member.life[-1]["params"])
        key = self._key(member, generation)
        self._numbers[key] = number
        self._running.add(key)
        parent = member.life[generation].get("from")
        members = {one.number: one for one in self._population.members}
        last = generation == self._population.generations - 1
        lineage = Lineage(
            heir_of="" if parent is None else self._key(members[parent], generation - 1),
            rests=None if last else self._population.rests_after(generation),
            buries=tuple(self._key(one, generation - 2) for one in members.values() if generation >= 2),
        )
        return dataclasses.replace(own, key=key, lineage=lineage)

    def _key(self, member: Member, generation: int) -> str:
        """Names the files of a member's generation, by all that it comes of; of the last as its record is named."""
        planned = self._members.get(member.number)
        own = planned.key if planned else member.trial.user_attrs["config_hash"]
        if generation == self._population.generations - 1:
            return own
        lived = [[one["params"], one.get("from")] for one in member.life[: generation + 1]]
        return content_hash([own, lived])

    def leftovers(self) -> Sequence[str]:
        """Keys of all generations of all members but the last, whose files can go once all has ended."""
        return [
            self._key(member, generation)
            for member in self._population.members
            for generation in range(len(member.life))
            if generation < self._population.generations - 1
        ]
