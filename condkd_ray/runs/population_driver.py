"""The driver of a population: generation by generation, members run, rest, and begin the next from a state of this."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal

from condkd_ray.core.config import content_hash
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.runs.search_driver import SearchRecorder
from condkd_ray.study.population import Member, Population
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.plan import Lineage, PlannedTrial, trial_hash

log = logging.getLogger(__name__)


class PopulationDriver:
    """A `cluster.driver.search.Proposer` of a population.

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
        self._give_up()
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
