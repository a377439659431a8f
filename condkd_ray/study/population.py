"""Population based training: trials run side by side, and the worst ones continue from the state of the best ones.

Source: Jaderberg et al., arXiv 1711.09846 (2017), from memory, not read: truncation selection, then exploration by
perturbing or resampling. In the paper, a member is compared as soon as it is ready. Here all members pause after the
same number of rounds, so that decisions depend only on the study and the seed, and not on the speed of trials: a search
that is killed and continued makes the same decisions.

Ray's scheduler for this method is not used: it keeps members, ranks and perturbations in Tune's files, which are up to
ten seconds old, and Ray allows no searcher, and therefore no study, together with it.
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
"""Fraction of members that continue from another state after each generation, and of members with these states."""
FACTORS = (0.8, 1.2)
"""Factors of a perturbation: a value is multiplied by one of them, unless the value is resampled."""
RESAMPLED = 0.25
"""Probability of resampling (our choice, as in Ray)."""
GENERATIONS = "generations"
"""User attribute: number of generations that a member has finished."""
SECTIONS = ("targets", "weighing", "inversion", "guidance", "memory", "distiller")
"""Sections of a config that may change in a running trial."""


@dataclass(frozen=True)
class Member:
    """A trial of the study, which runs in generations."""

    trial: FrozenTrial

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    @property
    def life(self) -> list[dict[str, Any]]:
        """One dict per started generation.

        `params`: values of the open leaves. `from`: number of the member whose state it continues; missing in the first
        generation. `failed`: the reason of its failure; missing if it did not fail.
        """
        return self.trial.user_attrs[LIFE]

    @property
    def ended(self) -> int:
        """Number of finished generations."""
        return self.trial.user_attrs.get(GENERATIONS, 0)

    def failed(self, generation: int) -> bool:
        """Return whether the member failed in `generation`."""
        return "failed" in self.life[generation]


def check_population(size: int, rounds: int, total: int, tree: Mapping[str, Any], objective: Objective) -> None:
    """Raise `InputError` for settings, open leaves or objectives that a population search does not support.

    `size`: number of members. `rounds`: rounds of a generation. `total`: rounds of a trial.
    """
    require(size >= 2, "--population", size, "an integer >= 2")
    require(1 <= rounds < total, "--generation-rounds", rounds, f"1 to {total - 1}, fewer than the rounds of a trial")
    require(not objective.several, "--objective with --population", " ".join(objective.names), "one name")
    fixed = [
        path
        for path, leaf in leaves(tree).items()
        if leaf.kind not in ("uniform", "log_uniform") or path.partition("/")[0] not in SECTIONS
    ]
    accepted = f"real numbers (!uniform, !log_uniform) of {', '.join(SECTIONS)}: others change the form of a state"
    require(not fixed, "--population with open leaves", ", ".join(fixed), accepted)
    require(tree.get("pipeline") is None, "--population with a pipeline", tree.get("pipeline"), "null")


class Population:
    """The `size` members of a study, which run in generations of `rounds` rounds out of `total`.

    `seed`: of the first parameters and of all decisions. The first use of a study adds its members.
    """

    def __init__(self, study: Study, tree: dict[str, Any], *, size: int, rounds: int, total: int, seed: int) -> None:
        self._study, self._leaves, self._seed = study, leaves(tree), seed
        self._rounds, self.generations = rounds, math.ceil(total / rounds)
        self.settings = (size, rounds, total, seed)
        for number in range(len(study.own), size):
            params = {name: _drawn(leaf, self._stream(number, 0, name)) for name, leaf in self._leaves.items()}
            study.begin(create_trial(state=TrialState.RUNNING, user_attrs={TO_RUN: True, LIFE: [{"params": params}]}))

    @property
    def members(self) -> list[Member]:
        """All members."""
        return [Member(trial) for trial in self._study.own]

    def open(self) -> list[Member]:
        """Return the members that have to run: those that have not finished the current generation.

        If all members have finished it, the next generation starts first. Empty after the last generation, or if all
        members failed.
        """
        members = self.members
        begun = max(len(member.life) for member in members)
        if min(len(member.life) for member in members) < begun:
            # The driver was killed while it started this generation; the remaining decisions do not change.
            self._begin_generation(members, begun - 1)
        elif begun < self.generations and all(member.ended == begun for member in members):
            if all(member.failed(begun - 1) for member in members):
                return []
            self._begin_generation(members, begun)
        return [m for m in self.members if m.ended < len(m.life) and not m.trial.state.is_finished()]

    def pause_after(self, generation: int) -> int:
        """Return the number of rounds after which the members of a generation pause."""
        return self._rounds * (generation + 1)

    def end_generation(self, number: int, reason: str = "") -> None:
        """Record that a member has finished a generation, or failed in it if there is a `reason`."""
        member = Member(self._study.trial(number))
        generation = len(member.life) - 1
        if reason:
            self._study.note(number, {LIFE: [*member.life[:-1], member.life[-1] | {"failed": reason}]})
        self._study.note(number, {GENERATIONS: generation + 1})

    def set_final_params(self, number: int) -> None:
        """Store the parameters of a member's last generation as those of its trial. Call this before the trial ends."""
        params = Member(self._study.trial(number)).life[-1]["params"]
        self._study.set_params(number, params, {name: distribution(leaf) for name, leaf in self._leaves.items()})

    def _begin_generation(self, members: Sequence[Member], generation: int) -> None:
        """Start a generation for all members that have not started it yet."""
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
                life = {"params": self.explored(params, member.number, generation), "from": parent.number}
            self._study.note(member.number, {LIFE: [*member.life, life]})

    def _score(self, member: Member, generation: int) -> float:
        """Return the last quality measured up to the end of a generation, negated if smaller is better.

        Minus infinity if the member failed in it, or if nothing was measured.
        """
        measured = member.trial.intermediate_values
        steps = [step for step in measured if step <= self.pause_after(generation)]
        if member.failed(generation) or not steps:
            return -math.inf
        return measured[max(steps)] * (1 if self._study.directions[0] == "maximize" else -1)

    def explored(self, params: Mapping[str, float], number: int, generation: int) -> dict[str, float]:
        """Return `params`, each moved by one of `FACTORS` or drawn anew, for the member `number` in a generation."""
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
