"""The driver of a search: what its study proposes becomes trials, and what is heard of these is written down."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optuna.trial import TrialState

from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.core.config import to_tree
from condkd_ray.core.environment import CpuClock
from condkd_ray.core.method import Metrics
from condkd_ray.core.view import SILENT, Best, Goal, View
from condkd_ray.report.records import Record, read_records, write_manifest
from condkd_ray.runs.manifest import describe_experiment, teacher_line
from condkd_ray.runs.options import Options
from condkd_ray.runs.plan import Plan
from condkd_ray.runs.recorder import Watch
from condkd_ray.runs.study_recorder import Scribe, recorded_outcome
from condkd_ray.study import Constraint, Objective, Proposal, Study
from condkd_ray.study.constraints import feasible
from condkd_ray.study.space import leaves
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.identity import trial_hash
from condkd_ray.trial.outcome import Outcome

log = logging.getLogger(__name__)


class Explorer:
    """Who decides in a search, a `cluster.driver.search.Guide`: the study, and what is written down of trials."""

    def __init__(
        self,
        question: str,
        study: Study,
        objective: Objective,
        tree: dict[str, Any],
        workshop: Workshop,
        options: Options,
        trials: int,
        constraints: Sequence[Constraint] = (),
        view: View = SILENT,
    ) -> None:
        self._question, self._study, self._objective = question, study, objective
        self._tree, self._workshop, self._options, self._wanted = tree, workshop, options, trials
        self._constraints = constraints
        self._kinds: dict[Any, tuple[Plan, str]] = {}
        self._newest: dict[str, Plan] = {}
        self._numbers: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._clock = CpuClock()
        self._scribe = Scribe(study, objective, options.out, constraints)
        records = {record.config_hash: record for record in read_records(options.out)}
        self._settle(records)
        self._again = [*study.left_running(), *self._unrecorded(records)]
        self._begun = len(study.finished) + len(study.left_running())
        missing = trials - self._begun + len(self._again)
        named = {name.replace("/", "."): leaf for name, leaf in leaves(tree).items()}
        choices = {name: leaf.examples for name, leaf in named.items() if leaf.kind == "choice"}
        ranges = {name: leaf.values for name, leaf in named.items() if leaf.kind != "choice"}
        goal = Goal(objective.names[0], objective.directions[0] == "maximize", decides=True)
        shown = {
            "total": missing,
            "choices": choices,
            "ranges": ranges,
            "goal": goal,
            "best": self._best(),
            "view": view,
        }
        self._watch = Watch("search", options.out, {}, options.place, **shown)

    @property
    def failed(self) -> int:
        """Trials that came to nothing, of those that this driver heard of."""
        return self._watch.failed

    def propose(self) -> Trial | Literal["later"] | None:
        """What an earlier driver had begun, then what the study proposes, until there are enough."""
        if self._again:
            return self._trial(self._again.pop(0))
        if self._begun >= self._wanted:
            return None
        proposal = self._study.propose(self._workshop.check)
        if proposal is None:
            log.info(f"the space holds no more than {self._begun} trials, or they are hard to find")
            return None
        self._begun += 1
        return self._trial(proposal)

    def round(self, trial: Trial, metrics: Metrics) -> None:
        """Shown, and told the study."""
        self._watch.round(trial.key, metrics)
        self._last[trial.key] = int(metrics["round"])
        self._scribe.round(self._numbers[trial.key], metrics)

    def goes_on(self, trial: Trial) -> bool:
        """Unless the study's pruner would end it; after its last round a trial is complete."""
        over = self._last.get(trial.key, 0) >= trial.config.total_rounds
        return over or not self._study.should_prune(self._numbers[trial.key])

    def untested(self, trial: Trial, outcome: Outcome) -> None:
        """The study is told how it ended. From here on nothing that decides hears of the trial."""
        self._scribe.ended(self._numbers[trial.key], trial.key, to_tree(trial.config), outcome)

    def rested(self, trial: Trial) -> None:
        """None ever rests."""
        raise AssertionError("a trial of a search goes on to its end")

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """It has its record, and one that was stopped or failed before the study hears of it; see `_settle`."""
        candidate = feasible(self._constraints, outcome.history)
        self._watch.outcome(trial.key, outcome, candidate=candidate)
        self._clock.look()
        self._scribe.ended(self._numbers[trial.key], trial.key, to_tree(trial.config), outcome)

    def describe(self, *, over: bool = False) -> None:
        """Write the manifest of what has been proposed so far; when all is `over` with the CPU seconds that it took."""
        if not self._kinds:
            return
        # Of each kind one, for the teachers and the notes.
        told = {key: plan for plan, key in self._kinds.values()} | self._newest
        manifest = describe_experiment(
            "search", self._question, list(told.values()), list(told), self._workshop, self._options.out
        )
        about = {
            "objective": list(self._objective.names),
            "directions": self._objective.directions,
            "constraints": [one.text for one in self._constraints],
            "parameters": list(leaves(self._tree)),
        }
        spent = self._clock.look() if over else None
        write_manifest(self._options.out, dataclasses.replace(manifest, search=about, cpu_seconds=spent))
        self._newest.clear()

    def close(self) -> None:
        """No more will be heard."""
        self._watch.close()

    def _best(self) -> Best | None:
        """Of the trials that earlier drivers have run."""
        found = [Best(f"trial {trial.number}", trial.values[0], trial.params) for trial in self._study.ranked[:1]]
        return found[0] if found else None

    def _settle(self, records: Mapping[str, Record]) -> None:
        """Tell the study of trials that were stopped or failed, whose driver died when they had just their records."""
        for proposal in self._study.left_running():
            record = records.get(self._study.trial(proposal.number).user_attrs.get("config_hash", ""))
            if record is not None and record.status in ("pruned", "failed"):
                self._scribe.ended(proposal.number, record.config_hash, record.config, recorded_outcome(record))

    def _unrecorded(self, records: Mapping[str, Record]) -> list[Proposal]:
        """Trials of which the study knows the end, whose driver died before it had made their records: tests are left.

        One that has failed may be among them, for a value that is not finite.
        """
        found = []
        for trial in self._study.finished:
            record = records.get(trial.user_attrs["config_hash"])
            if record is None or (trial.state == TrialState.COMPLETE and record.status != "finished"):
                found.append(self._study.proposal(trial))
        return found

    def _trial(self, proposal: Proposal) -> Trial:
        config = proposal.config
        prepared = self._workshop.prepare(config)
        key, ipc = trial_hash(config, prepared, self._options.share), getattr(config.condensation, "ipc", 0)
        plan = Plan(f"trial {proposal.number}", ipc, config.seed, config, self._options.share)
        self._numbers[key] = proposal.number
        self._register(proposal.number, key, plan, prepared, proposal.params)
        return Trial(key, plan.label, config, prepared, plan.scope)

    def _register(self, number: int, key: str, plan: Plan, prepared: Prepared, params: Mapping[str, Any]) -> None:
        """From now on there is a trial of that number and key: in the study, on all screens and in the manifest."""
        config = plan.config
        if not self._kinds:
            log.info(teacher_line(describe_experiment("search", "", [plan], [key], self._workshop, self._options.out)))
        self._newest[key] = plan
        self._kinds.setdefault((config.teacher, type(config.condensation)), (plan, key))
        self._study.note(number, {"config_hash": key, "teacher_hash": prepared.hashes["teacher"]})
        self._watch.add(key, plan, prepared, params)
        self.describe()
