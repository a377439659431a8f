"""The driver of a population: generation by generation, members run, rest, and begin the next from a state of this."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.core.config import content_hash, to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.view import SILENT, View
from condkd_ray.runs.options import Options
from condkd_ray.runs.plan import Plan
from condkd_ray.runs.search_driver import Explorer
from condkd_ray.study import Objective, Study
from condkd_ray.study.population import Member, Population
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.identity import trial_hash
from condkd_ray.trial.outcome import Outcome

log = logging.getLogger(__name__)


class Breeder(Explorer):
    """Who decides in a search by a population.

    A member is one trial of the study, one run in TensorBoard and one record; on the cluster each of its generations is
    a trial of its own, that starts from what another has left.
    """

    def __init__(
        self,
        question: str,
        study: Study,
        objective: Objective,
        tree: dict[str, Any],
        workshop: Workshop,
        options: Options,
        population: Population,
        view: View = SILENT,
    ) -> None:
        self._population = population
        self._keys: dict[int, str] = {}
        self._rounds: dict[int, int] = {}
        self._running = set[str]()
        super().__init__(question, study, objective, tree, workshop, options, len(population.members), view=view)
        self._queue = [proposal.number for proposal in self._again if study.over(proposal.number)]

    def propose(self) -> Trial | Literal["later"] | None:
        """A member's generation; the next one begins when all have ended this."""
        if not self._queue and self._running:
            return "later"
        if not self._queue:
            self._queue = [member.number for member in self._population.open()]
        if self._queue:
            return self._segment(self._queue.pop(0))
        self._give_up()
        return None

    def round(self, trial: Trial, metrics: Metrics) -> None:
        """Shown, and told the study; but for what its state has been through under another member."""
        number, round = self._numbers[trial.key], int(metrics["round"])
        if round > self._rounds.get(number, 0):
            self._rounds[number] = round
            self._watch.round(self._keys[number], metrics)
            self._scribe.round(number, metrics)

    def goes_on(self, trial: Trial) -> bool:
        """Until it rests."""
        return True

    def rested(self, trial: Trial) -> None:
        """A member has ended a generation."""
        self._running.discard(trial.key)
        self._population.rested(self._numbers[trial.key])

    def untested(self, trial: Trial, outcome: Outcome) -> None:
        """The study is told how a member has ended, under the last of its parameters."""
        number = self._numbers[trial.key]
        self._population.settle(number)
        self._scribe.ended(number, self._keys[number], to_tree(trial.config), outcome)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """It has its record; or it came to nothing in a generation after which it can take over another's state."""
        number = self._numbers[trial.key]
        self._running.discard(trial.key)
        if outcome.status == "failed" and trial.rests is not None:
            log.info(f"{trial.label}: {outcome.reason}; it goes on from another's state")
            return self._population.rested(number, outcome.reason)
        self._watch.outcome(self._keys[number], outcome)
        self._clock.look()
        self.untested(trial, outcome)

    def _segment(self, number: int) -> Trial:
        """The generation of a member that it has begun last."""
        member = Member(self._study.trial(number))
        generation, config = len(member.life) - 1, self._study.proposal(member.trial).config
        prepared = self._workshop.prepare(config)
        plan = Plan(f"trial {number}", getattr(config.condensation, "ipc", 0), config.seed, config, self._options.share)
        first = trial_hash(self._study.config(member.life[0]["params"]), prepared)
        self._keys[number] = content_hash([first, number, list(self._population.settings)])
        self._register(number, self._keys[number], plan, prepared, member.life[-1]["params"])
        key = self._key(member, generation)
        self._numbers[key] = number
        self._running.add(key)
        parent = member.life[generation].get("from")
        members = {one.number: one for one in self._population.members}
        last = generation == self._population.generations - 1
        return Trial(
            *(key, plan.label, config, prepared),
            heir_of="" if parent is None else self._key(members[parent], generation - 1),
            rests=None if last else self._population.rests_after(generation),
            buries=tuple(self._key(one, generation - 2) for one in members.values() if generation >= 2),
        )

    def _key(self, member: Member, generation: int) -> str:
        """Names the files of a member's generation, by all that it comes of; of the last as its record is named."""
        own = self._keys.get(member.number) or member.trial.user_attrs["config_hash"]
        if generation == self._population.generations - 1:
            return own
        lived = [[one["params"], one.get("from")] for one in member.life[: generation + 1]]
        return content_hash([own, lived])

    def _give_up(self) -> None:
        """Where all members came to nothing in a generation, there is no state to go on from."""
        for member in self._population.members:
            if not member.trial.state.is_finished():
                self._population.settle(member.number)
                self._study.fail(member.number, member.life[-1].get("failed", "no member is left"))

    def leftovers(self) -> Sequence[str]:
        """Keys of all generations of all members but the last, whose files can go once all has ended."""
        return [
            self._key(member, generation)
            for member in self._population.members
            for generation in range(len(member.life))
            if generation < self._population.generations - 1
        ]
