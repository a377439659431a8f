"""The driver of a search: what its study proposes becomes trials, and what is heard of these is written down."""

from __future__ import annotations

import dataclasses
from typing import Any

from optuna.trial import TrialState

from condkd_ray.artifacts import Workshop
from condkd_ray.bookkeeping import Watch, describe_experiment, teacher_line
from condkd_ray.cluster.trials import Trial
from condkd_ray.config import to_tree
from condkd_ray.flags import RunFlags
from condkd_ray.identity import trial_hash
from condkd_ray.method import Metrics
from condkd_ray.outcome import Outcome
from condkd_ray.plans import Plan
from condkd_ray.report.records import finished, write_manifest
from condkd_ray.scribe import Scribe
from condkd_ray.shell import say
from condkd_ray.space import leaves
from condkd_ray.study import Objective, Proposal, Study


class Explorer:
    """Who decides in a search (`condkd_ray.cluster.searching.Guide`): the study, and what is written down of trials."""

    def __init__(
        self,
        question: str,
        study: Study,
        objective: Objective,
        tree: dict[str, Any],
        workshop: Workshop,
        flags: RunFlags,
        trials: int,
    ) -> None:
        self._question, self._study, self._objective = question, study, objective
        self._tree, self._workshop, self._flags, self._wanted = tree, workshop, flags, trials
        self._plans: dict[str, Plan] = {}
        self._numbers: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._scribe = Scribe(study, objective, flags.out)
        self._again = [*study.left_running(), *self._unrecorded()]
        self._begun = len(study.finished) + len(study.left_running())
        missing = trials - self._begun + len(self._again)
        named = {name.replace("/", "."): leaf for name, leaf in leaves(tree).items()}
        choices = {name: leaf.examples for name, leaf in named.items() if leaf.kind == "choice"}
        ranges = {name: leaf.values for name, leaf in named.items() if leaf.kind != "choice"}
        shown = {"total": missing, "choices": choices, "ranges": ranges}
        self._watch = Watch("search", flags.out, {}, flags.place, **shown)

    @property
    def failed(self) -> int:
        """Trials that came to nothing, of those that this driver heard of."""
        return self._watch.failed

    def propose(self) -> Trial | None:
        """What an earlier driver had begun, then what the study proposes, until there are enough."""
        if self._again:
            return self._trial(self._again.pop(0))
        if self._begun >= self._wanted:
            return None
        proposal = self._study.propose(self._workshop.check)
        if proposal is None:
            say(f"the space holds no more than {self._begun} trials, or they are hard to find")
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

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """It has its record."""
        self._scribe.ended(self._numbers[trial.key], trial.key, to_tree(trial.config), outcome)
        self._watch.outcome(trial.key, outcome)

    def describe(self, cpu_seconds: float | None = None) -> None:
        """Write the manifest of what has been proposed so far."""
        if not self._plans:
            return
        manifest = describe_experiment(
            "search", self._question, list(self._plans.values()), list(self._plans), self._workshop, self._flags.out
        )
        about = {
            "objective": list(self._objective.names),
            "directions": self._objective.directions,
            "parameters": list(leaves(self._tree)),
        }
        write_manifest(self._flags.out, dataclasses.replace(manifest, search=about, cpu_seconds=cpu_seconds))

    def close(self) -> None:
        """No more will be heard."""
        self._watch.close()

    def _unrecorded(self) -> list[Proposal]:
        """Complete trials whose driver died before it had made their records: only the test is left."""
        done = finished(self._flags.out)
        complete = (trial for trial in self._study.finished if trial.state == TrialState.COMPLETE)
        return [self._study.proposal(trial) for trial in complete if trial.user_attrs["config_hash"] not in done]

    def _trial(self, proposal: Proposal) -> Trial:
        config = proposal.config
        prepared = self._workshop.prepare(config)
        key, ipc = trial_hash(config, prepared, self._flags.share), getattr(config.condensation, "ipc", 0)
        plan = Plan(f"trial {proposal.number}", ipc, config.seed, config, self._flags.share)
        if not self._plans:
            say(teacher_line(describe_experiment("search", "", [plan], [key], self._workshop, self._flags.out)))
        self._plans[key], self._numbers[key] = plan, proposal.number
        self._study.note(proposal.number, {"config_hash": key, "teacher_hash": prepared.hashes["teacher"]})
        self._watch.add(key, plan, prepared)
        self.describe()
        return Trial(key, plan.label, config, prepared, plan.scope)
