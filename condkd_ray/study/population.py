"""Population based training: trials that run side by side, of which the poor take over the state of the good.

Source: Jaderberg et al., arXiv 1711.09846 (2017), recalled, not read: truncation selection, then exploration by
perturbing or drawing anew.
There members are compared whenever one is ready. Here all rest after as many rounds, so that what is decided hangs on
the study and the seed alone, not on which trial was faster: killed and continued, a search decides the same again.
Ray has a scheduler for it, whose members, ranks and perturbations are in Tune's files: these are up to ten seconds
behind, and Ray lets no searcher, and so no study, propose beside it.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from condkd_ray.core.method import require
from condkd_ray.core.rng import derive_seed
from condkd_ray.study.objective import Objective
from condkd_ray.study.space import Open, distribution, leaves
from condkd_ray.study.study import LIFE, TO_RUN, Study

QUARTER = 0.25
"""Share of members that take over another's state after each generation, and of those whose they may take."""
FACTORS = (0.8, 1.2)
"""One of which a value is multiplied by, unless it is drawn anew."""
RESAMPLED = 0.25
"""How often it is (our choice, as in Ray)."""
GENERATIONS = "generations"
"""User attribute: how many generations a member has ended."""
SECTIONS = ("targets", "weighing", "inversion", "guidance", "memory", "distiller")
"""Parts of a config that may change in a running trial."""


@dataclass(frozen=True)
class Member:
    """A trial of the study. A generation of its `life` has its `params`, and says whose state it began `from`."""

    trial: FrozenTrial

    @property
    def number(self) -> int:
        """Of the trial."""
        return self.trial.number

    @property
    def life(self) -> list[dict[str, Any]]:
        """Generations begun, the first without a `from`; one that came to nothing says why under `failed`."""
        return self.trial.user_attrs[LIFE]

    @property
    def ended(self) -> int:
        """Generations ended."""
        return self.trial.user_attrs.get(GENERATIONS, 0)

    def failed(self, generation: int) -> bool:
        """Whether it came to nothing in that one."""
        return "failed" in self.life[generation]


def check_population(size: int, rounds: int, total: int, tree: Mapping[str, Any], objective: Objective) -> None:
    """Raise `InputError` for what such a search cannot do."""
    require(size >= 2, "--population", size, "an integer >= 2")
    require(1 <= rounds < total, "--generation-rounds", rounds, f"1 to {total - 1}, fewer than the rounds of a trial")
    require(not objective.several, "--objective with --population", " ".join(objective.names), "one name")
    fixed = [
        path
        for path, leaf in leaves(tree).items()
        if leaf.kind not in ("uniform", "log_uniform") or path.partition("/")[0] not in SECTIONS
    ]
    accepted = f"real numbers (!uniform, !log_uniform) of {', '.join(SECTIONS)}: others give a state its shape or sense"
    require(not fixed, "--population with open leaves", ", ".join(fixed), accepted)
    require(tree.get("pipeline") is None, "--population with a pipeline", tree.get("pipeline"), "null")


class Population:
    """The members of a study, as far as they have come: `size` of them, in generations of `rounds` out of `total`."""

    def __init__(self, study: Study, tree: dict[str, Any], *, size: int, rounds: int, total: int, seed: int) -> None:
        self._study, self._leaves, self._seed = study, leaves(tree), seed
        self._rounds, self.generations = rounds, math.ceil(total / rounds)
        self.settings = (size, rounds, total, seed)
        for number in range(len(study.own), size):
            params = {name: _drawn(leaf, self._stream(number, 0, name)) for name, leaf in self._leaves.items()}
            study.begin(create_trial(state=TrialState.RUNNING, user_attrs={TO_RUN: True, LIFE: [{"params": params}]}))

    @property
    def members(self) -> list[Member]:
        """All of them."""
        return [Member(trial) for trial in self._study.own]

    def open(self) -> list[Member]:
        """Those that have to run: in the earliest generation that not all have ended. None at the end.

        Where all have ended one, and there is another, it begins; not where all came to nothing.
        """
        members = self.members
        begun = max(len(member.life) for member in members)
        if min(len(member.life) for member in members) < begun:
            # Its driver was killed over it, and would have done the same.
            self._begin_generation(members, begun - 1)
        elif begun < self.generations and all(member.ended == begun for member in members):
            if all(member.failed(begun - 1) for member in members):
                return []
            self._begin_generation(members, begun)
        return [m for m in self.members if m.ended < len(m.life) and not m.trial.state.is_finished()]

    def rests_after(self, generation: int) -> int:
        """The round after which members of a generation rest."""
        return self._rounds * (generation + 1)

    def rested(self, number: int, reason: str = "") -> None:
        """A member has ended a generation; where there is a reason, it came to nothing."""
        member = Member(self._study.trial(number))
        generation = len(member.life) - 1
        if reason:
            self._study.note(number, {LIFE: [*member.life[:-1], member.life[-1] | {"failed": reason}]})
        self._study.note(number, {GENERATIONS: generation + 1})

    def settle(self, number: int) -> None:
        """Give a member the parameters of its last generation: it is about to be told over."""
        params = Member(self._study.trial(number)).life[-1]["params"]
        self._study.set_params(number, params, {name: distribution(leaf) for name, leaf in self._leaves.items()})

    def _begin_generation(self, members: Sequence[Member], generation: int) -> None:
        """Have those begin a generation that have not begun it yet."""
        ranked = sorted(members, key=lambda member: (-self._score(member, generation - 1), member.number))
        count = max(1, int(QUARTER * len(members)))
        best = [member for member in ranked[:count] if not member.failed(generation - 1)]
        worst = [member for member in members if member in ranked[-count:] or member.failed(generation - 1)]
        for member in members:
            if len(member.life) > generation:
                continue
            life = {"params": member.life[generation - 1]["params"], "from": member.number}
            stream = self._stream(member.number, generation, "parent")
            parent = stream.choice(best)
            if member in worst and self._score(member, generation - 1) < self._score(parent, generation - 1):
                params = parent.life[generation - 1]["params"]
                life = {"params": self._explored(params, member.number, generation), "from": parent.number}
            self._study.note(member.number, {LIFE: [*member.life, life]})

    def _score(self, member: Member, generation: int) -> float:
        """The quality that it was last measured with, up to the end of a generation; more is better."""
        told = member.trial.intermediate_values
        steps = [step for step in told if step <= self.rests_after(generation)]
        if member.failed(generation) or not steps:
            return -math.inf
        return told[max(steps)] * (1 if self._study.directions[0] == "maximize" else -1)

    def _explored(self, params: Mapping[str, float], number: int, generation: int) -> dict[str, float]:
        found = {}
        for name, leaf in self._leaves.items():
            stream = self._stream(number, generation, name)
            low, high = leaf.values
            moved = min(max(params[name] * stream.choice(FACTORS), low), high)
            found[name] = _drawn(leaf, stream) if stream.random() < RESAMPLED else moved
        return found

    def _stream(self, number: int, generation: int, name: str) -> random.Random:
        return random.Random(derive_seed(self._seed, f"population/{generation}/{number}/{name}"))


def _drawn(leaf: Open, stream: random.Random) -> float:
    low, high = leaf.values
    if leaf.kind == "uniform":
        return stream.uniform(low, high)
    return min(max(math.exp(stream.uniform(math.log(low), math.log(high))), low), high)
