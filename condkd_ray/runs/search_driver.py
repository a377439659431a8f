"""Drivers of a search: they make trials from the study's proposals and write the results."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from optuna.trial import TrialState

from condkd_ray.cluster.files import trial_file
from condkd_ray.core.config import content_hash, to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Record, read_records, write_manifest, write_record
from condkd_ray.core.task import Score
from condkd_ray.core.view import SILENT, Best, Goal, View
from condkd_ray.runs.recorder import Recorder, StudyWriter, describe_experiment, teacher_line
from condkd_ray.runs.search_records import restore_trials
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.objective import feasible
from condkd_ray.study.population import Member, Population
from condkd_ray.study.space import default, leaves
from condkd_ray.study.study import LIFE, Proposal, Study
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import check_round_fits
from condkd_ray.trial.hardware import CPU, Hardware, compute_line, settled
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial, trial_hash

log = logging.getLogger(__name__)


class SearchRecorder:
    """Makes trials from a study's proposals, and writes their results: study, records, event files and manifest.

    It continues the work of earlier drivers, which may have died at any moment. `left`: proposals that they have
    started and not completed. `begun`: number of trials so far, including `left`. `fits`: raises `InputError` for a
    config that the cluster cannot run. Raises `InputError` if a record cannot be read.
    """

    def __init__(
        self,
        question: str,
        study: Study,
        tree: dict[str, Any],
        workshop: Workshop,
        spec: SearchSpec,
        view: View = SILENT,
        *,
        hardware: Hardware = CPU,
        fits: Callable[[TrialConfig], None] = lambda config: None,
    ) -> None:
        self.study, self.workshop, self.spec = study, workshop, spec
        self.hardware = hardware
        """The hardware that the trials compute on."""
        self.fits = fits
        self._question, self._tree = question, tree
        self._kinds: dict[Any, PlannedTrial] = {}
        self._newest: dict[str, PlannedTrial] = {}
        self.numbers: dict[str, int] = {}
        """Numbers of trials in the study, by key."""
        objective = spec.parsed_objective
        self._writer = StudyWriter(study, objective, spec.out, spec.parsed_constraints)
        self._recorded = records = {record.config_hash: record for record in read_records(spec.out)}
        self._settle(records)
        if not spec.population:
            restore_trials(study, tree, self._writer, list(records.values()), spec, hardware)
        self.left = [*study.left_running(), *self._unrecorded(records)]
        self.begun = len(study.finished) + len(study.left_running())
        named = {name.replace("/", "."): leaf for name, leaf in leaves(tree).items()}
        self.records = Recorder(
            *("search", spec.out, [], spec.storage_root),
            total=spec.wanted - self.begun + len(self.left),
            choices={name: leaf.examples for name, leaf in named.items() if leaf.kind == "choice"},
            ranges={name: leaf.values for name, leaf in named.items() if leaf.kind != "choice"},
            goal=Goal(objective.names[0], objective.directions[0] == "maximize", decides=True),
            best=next((Best(f"trial {t.number}", t.values[0], t.params) for t in study.ranked[:1]), None),
            of_study=spec.study,
            score=Score(default(tree).data.task),
            view=view,
        )

    def check(self, config: TrialConfig) -> None:
        """Raise `InputError` for a proposal that is invalid, or that hardware or cluster do not support."""
        self.workshop.check(config)
        settled(config, self.hardware)
        self.fits(config)

    def plan(self, number: int, config: TrialConfig) -> PlannedTrial[Prepared]:
        """Return trial `number` with its artifacts; its key is the trial's hash.

        Raises `InputError` if the config cannot be run.
        """
        check_round_fits(self.spec.device_pool_bytes, config, self.workshop.data(config))
        config = settled(config, self.hardware)
        prepared, scope = self.workshop.prepare(config), self.spec.share
        plan = Plan(f"trial {number}", config.ipc, config.seed, config, scope)
        return PlannedTrial(trial_hash(config, prepared, scope), plan, prepared)

    def begin(self, number: int, trial: PlannedTrial[Prepared], params: Mapping[str, Any]) -> None:
        """Register a trial that starts in the study, in the records' writer and in the manifest."""
        if not self._kinds:
            log.info(teacher_line(describe_experiment("search", "", [trial], self.workshop, self.spec.out)))
            each, limit = self.spec.per_trial, self.spec.device_pool_bytes
            log.info(compute_line(self._precisions(trial.config), self.hardware, each, limit))
        self.numbers[trial.key], self._newest[trial.key] = number, trial
        self._kinds.setdefault((trial.config.teacher, type(trial.config.condensation)), trial)
        self.study.note(number, {"config_hash": trial.key, "teacher_hash": trial.prepared.hashes["teacher"]})
        self.records.add(trial, params)
        self.describe()

    def round(self, trial: PlannedTrial[Prepared], metrics: Metrics) -> None:
        """Record a finished round."""
        self.records.round(trial, metrics)
        self._writer.round(self.numbers[trial.key], metrics)

    def save_record(self, trial: PlannedTrial[Prepared], outcome: Outcome) -> None:
        """Write the record of a trial that is over. For one stopped early or failed, call `end_in_study` afterwards."""
        self.records.ended(trial, outcome, candidate=feasible(self.spec.parsed_constraints, outcome.history))

    def end_in_study(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Write the final state of a trial into the study. Later results influence no decision of the search."""
        self._writer.ended(self.numbers[trial.key], trial.key, to_tree(trial.config), outcome)

    def restored(self, trial: PlannedTrial[Prepared], number: int) -> bool:
        """Return whether a trial that is to start has a record already; if so, write its final state into the study.

        The study has lost this trial, or never had it: the record may be that of an equal trial of another study in the
        folder, and it remains a record of that study.
        """
        record = self._recorded.get(trial.key)
        if record is None or self.study.over(number):
            return False
        self._writer.restore(number, record)
        self._newest[trial.key] = trial
        named = dataclasses.replace(record, arm=trial.plan.arm, study=self.spec.study)
        if record.study in ("", self.spec.study) and named != record:
            write_record(self.spec.out, named)
        return True

    def record_of(self, trial: PlannedTrial[Prepared]) -> Record | None:
        """Return the record that the trial had when this driver started; None if it had none."""
        return self._recorded.get(trial.key)

    def describe(self, *, over: bool = False) -> None:
        """Write the manifest of the trials proposed so far.

        `over`: True at the end; the CPU seconds are then included.
        """
        if not self._kinds and not self._newest:
            return
        # A trial of each kind is included too, for the teachers and the notes.
        known = {trial.key: trial for trial in self._kinds.values()} | self._newest
        out = self.spec.out
        trials, study = list(known.values()), self.spec.study
        manifest = describe_experiment("search", self._question, trials, self.workshop, out, study=study)
        about = {
            "objective": list(self.spec.parsed_objective.names),
            "directions": self.spec.parsed_objective.directions,
            "constraints": [one.text for one in self.spec.parsed_constraints],
            "parameters": list(leaves(self._tree)),
        }
        spent = self.records.clock.measure() if over else None
        write_manifest(out, dataclasses.replace(manifest, search=about, cpu_seconds=spent))
        self._newest.clear()

    def _precisions(self, config: TrialConfig) -> list[TrialConfig]:
        """Return the config in each precision that trials may have."""
        leaf = leaves(self._tree).get("precision")
        chosen = [config.precision] if leaf is None else leaf.values
        return [settled(dataclasses.replace(config, precision=one), self.hardware) for one in chosen]

    def _settle(self, records: Mapping[str, Record]) -> None:
        """Write into the study the final states of trials that have a record but are still running in the study.

        If they were stopped or failed, their driver died between the two writes. If they finished, their final state
        was in the study before the record, and was lost since. Members of a population are left to their driver: the
        study may have lost their last generations, and the driver checks which generation the record belongs to.
        """
        for proposal in self.study.left_running():
            attributes = self.study.trial(proposal.number).user_attrs
            record = records.get(attributes.get("config_hash", ""))
            if record is not None and LIFE not in attributes:
                self._writer.restore(proposal.number, record)

    def _unrecorded(self, records: Mapping[str, Record]) -> list[Proposal]:
        """Return trials whose final state is in the study, but whose driver died before it wrote their records.

        They still need their test. One that failed in the study, for a value that is not finite, may be among them.
        """
        found = []
        for trial in self.study.finished:
            record = records.get(trial.user_attrs.get("config_hash", ""))
            if record is None or (trial.state == TrialState.COMPLETE and record.status != "finished"):
                found.append(self.study.proposal(trial))
        return found


class SearchDriver:
    """A `cluster.search.Proposer` that proposes the trials of the study."""

    def __init__(self, recorder: SearchRecorder) -> None:
        self._recorder, self._study = recorder, recorder.study
        self._left, self._begun = list(recorder.left), recorder.begun
        self._last: dict[str, int] = {}

    def propose(self) -> PlannedTrial[Prepared] | None:
        """Return the next trial: first those left by an earlier driver, then the study's proposals.

        None once there are enough trials, or if the space has no other.
        """
        while (proposal := self._next()) is not None:
            trial = self._recorder.plan(proposal.number, proposal.config)
            if not self._recorder.restored(trial, proposal.number):
                self._recorder.begin(proposal.number, trial, proposal.params)
                return trial
        return None

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Record a finished round, in the study too."""
        self._last[trial.key] = int(metrics["round"])
        self._recorder.round(trial, metrics)

    def continues(self, trial: PlannedTrial) -> bool:
        """Return False if the study's pruner would stop the trial; a trial past its last round is complete."""
        over = self._last.get(trial.key, 0) >= trial.config.total_rounds
        return over or not self._study.should_prune(self._recorder.numbers[trial.key])

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Write the final state of a finished trial into the study, before its test."""
        self._recorder.end_in_study(trial, outcome)

    def paused(self, trial: PlannedTrial) -> None:
        """Raise `AssertionError`: trials of this driver never pause."""
        raise AssertionError("a trial of a search runs to its end")

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Write the record first; then, for a trial stopped early or failed, its final state into the study."""
        self._recorder.save_record(trial, outcome)
        self._recorder.end_in_study(trial, outcome)

    def _next(self) -> Proposal | None:
        if self._left:
            return self._left.pop(0)
        if self._begun >= self._recorder.spec.trials:
            return None
        proposal = self._study.propose(self._recorder.check)
        if proposal is None:
            log.info(f"the space has no more than {self._begun} trials, or further ones are hard to find")
        else:
            self._begun += 1
        return proposal


class PopulationDriver:
    """A `cluster.search.Proposer` of a population.

    A member is one trial of the study, one run in TensorBoard and one record. On the cluster, each of its generations
    is a separate trial, which starts from the state that a generation before it has left. States are deleted once all
    members have ended. If the study has lost a final state since then, the earlier generations are run again.
    """

    def __init__(self, recorder: SearchRecorder, population: Population) -> None:
        self._recorder, self._study, self._population = recorder, recorder.study, population
        self._members: dict[int, PlannedTrial[Prepared]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        """Number and generation of a member, by the key of the generation."""
        self._rounds: dict[int, int] = {}
        self._running = set[str]()
        self._queue: list[tuple[int, int]] = []
        self._unrecorded = [proposal.number for proposal in recorder.left if self._study.over(proposal.number)]
        """Members without a record whose final state is in the study."""

    def propose(self) -> PlannedTrial[Prepared] | Literal["later"] | None:
        """Return the next generation of a member, which starts once all members have ended the generation before.

        "later" while members run; None if all members have ended.
        """
        if not self._queue and self._running:
            return "later"
        if not self._queue:
            self._queue = self._next()
        if self._queue:
            return self._generation(*self._queue.pop(0))
        # If all members failed in a generation, there is no state to resume from.
        for member in self._population.members:
            if not member.trial.state.is_finished():
                self._population.set_final_params(member.number)
                self._study.fail(member.number, member.life[-1].get("failed", "no member is left"))
        return None

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Record a finished round, except for rounds that the copied state went through in another member."""
        (number, _), round = self._places[trial.key], int(metrics["round"])
        if round > self._rounds.get(number, 0):
            self._rounds[number] = round
            self._recorder.round(self._members[number], metrics)

    def continues(self, trial: PlannedTrial) -> bool:
        """Return True: members run until they pause."""
        return True

    def paused(self, trial: PlannedTrial) -> None:
        """Record that a member has ended a generation."""
        self._running.discard(trial.key)
        if not self._repeated(trial):
            self._population.end_generation(self._places[trial.key][0])

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Write the final state of a member into the study, with its last parameters."""
        number, _ = self._places[trial.key]
        self._population.set_final_params(number)
        self._recorder.end_in_study(self._members[number], outcome)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Write the record of a member.

        If it failed before its last generation, it copies the state of another instead.
        """
        number, generation = self._places[trial.key]
        self._running.discard(trial.key)
        if self._repeated(trial):
            return log.info(f"{trial.label}: repeating generation {generation + 1} failed: {outcome.reason}")
        if outcome.status == "failed" and trial.lineage.pause_after is not None:
            log.info(f"{trial.label}: {outcome.reason}; it continues from another member's state")
            return self._population.end_generation(number, outcome.reason)
        self._recorder.save_record(self._members[number], outcome)
        self.untested(trial, outcome)

    def _next(self) -> list[tuple[int, int]]:
        """Return the generations of members to run now, side by side; empty if all members have ended.

        A member in its last generation has ended if it has a record of this generation. Among the generations that are
        still needed, and those whose states they need, the earliest run first.
        """
        last = self._population.generations - 1
        wanted = [(member.number, len(member.life) - 1) for member in self._population.open()]
        wanted = [one for one in wanted if one[1] < last or not self._restored(*one)]
        wanted += [(number, last) for number in self._unrecorded]
        needed = self._needed(wanted)
        now = sorted(one for one in needed if one[1] == min(generation for _, generation in needed))
        self._unrecorded = [number for number in self._unrecorded if (number, last) not in now]
        return now

    def _restored(self, number: int, generation: int) -> bool:
        """Return whether a member has a record of its last generation; if so, write its final state into the study."""
        own = self._planned(number, generation)
        record = self._recorder.record_of(own)
        # On a GPU a member that was run again may have evolved differently.
        if record is None or record.config != to_tree(own.config):
            return False
        self._population.set_final_params(number)
        return self._recorder.restored(own, number)

    def _needed(self, wanted: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return these generations of members, and earlier ones that must be repeated as their states are missing."""
        members = {member.number: member for member in self._population.members}
        found, left = set[tuple[int, int]](), list(wanted)
        while left:
            number, generation = one = left.pop()
            found.add(one)
            parent = members[number].life[generation].get("from")
            if parent is None or self._left_files(self._key(members[number], generation)):
                continue
            key = self._key(members[parent], generation - 1)
            # A generation run by this driver has left its state, or failed to.
            if key not in self._places and not self._left_files(key):
                left.append((parent, generation - 1))
        return found

    def _left_files(self, key: str) -> bool:
        """Return whether a generation has left its state or its outcome."""
        place = self._recorder.spec.storage_root
        return trial_file(place, key, "state").is_file() or trial_file(place, key, "outcome").is_file()

    def _repeated(self, trial: PlannedTrial) -> bool:
        """Return whether the trial is an earlier generation than the member's current one."""
        number, generation = self._places[trial.key]
        return generation < len(Member(self._study.trial(number)).life) - 1

    def _planned(self, number: int, generation: int) -> PlannedTrial[Prepared]:
        """Return a member's trial in this generation, with the key of its record."""
        life = Member(self._study.trial(number)).life
        planned = self._recorder.plan(number, self._study.config(life[generation]["params"]))
        begun = settled(self._study.config(life[0]["params"]), self._recorder.hardware)
        first = trial_hash(begun, planned.prepared)
        return dataclasses.replace(planned, key=content_hash([first, number, list(self._population.settings)]))

    def _generation(self, number: int, generation: int) -> PlannedTrial[Prepared]:
        """Register a member's generation as a trial that starts, and return this trial."""
        member, own = Member(self._study.trial(number)), self._planned(number, generation)
        self._members[number] = own
        self._recorder.begin(number, own, member.life[generation]["params"])
        key = self._key(member, generation)
        self._places[key] = number, generation
        self._running.add(key)
        parent = member.life[generation].get("from")
        members = {one.number: one for one in self._population.members}
        last = generation == self._population.generations - 1
        lineage = Lineage(
            parent="" if parent is None else self._key(members[parent], generation - 1),
            pause_after=None if last else self._population.pause_after(generation),
            deletes=tuple(self._key(one, generation - 2) for one in members.values() if generation >= 2),
        )
        return dataclasses.replace(own, key=key, lineage=lineage)

    def _key(self, member: Member, generation: int) -> str:
        """Return the key of a generation's files: a hash of its ancestry; for the last one, the key of the record."""
        planned = self._members.get(member.number)
        own = planned.key if planned else member.trial.user_attrs["config_hash"]
        if generation == self._population.generations - 1:
            return own
        lived = [[one["params"], one.get("from")] for one in member.life[: generation + 1]]
        return content_hash([own, lived])

    def leftovers(self) -> Sequence[str]:
        """Return the keys of all generations except the last.

        Their files can be deleted once all members have ended.
        """
        return [
            self._key(member, generation)
            for member in self._population.members
            for generation in range(len(member.life))
            if generation < self._population.generations - 1
        ]
