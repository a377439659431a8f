"""How far an experiment has come: what runs, what has ended, how long the rest will take."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from condkd_ray.core.view import AGREEMENT, NONE, Best, Goal


@dataclass
class Running:
    """A trial that has ended a round."""

    label: str
    round: int
    rounds: int
    seen: int = 0
    """Rounds that passed while we looked: a resumed trial does not start at 1."""
    now: float | None = None
    """The goal's metric as it was last measured."""
    best: float | None = None


class Progress:
    """Counts trials and rounds, and guesses the time left.

    `total`: trials still to run when this was made. `best`: the best one of those that ended before. `clock`: seconds.
    """

    def __init__(
        self,
        total: int,
        goal: Goal = AGREEMENT,
        *,
        best: Best | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.goal, self.best = total, goal, best
        self.running: dict[str, Running] = {}
        self.ended = Counter[str]()
        """Trials by status."""
        self.groups: dict[str, list[float]] = defaultdict(list)
        """The last values of the goal's metric of finished trials, by arm."""
        self._clock, self._start = clock, clock()
        self._rounds_seen = 0
        self._counted_from: float | None = None
        """When the first trials had shown a round each: how long these took to start says nothing of the rest."""
        self._lengths: list[int] = []

    @property
    def done(self) -> int:
        """Trials that have ended, in whatever way."""
        return self.ended.total()

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return self._clock() - self._start

    def round(self, key: str, label: str, number: int, rounds: int, value: float | None = None) -> None:
        """Trial `key`, shown as `label`, has ended round `number` of `rounds`. After a restart it may fall back."""
        known = self.running.setdefault(key, Running(label, number - 1, rounds))
        passed = max(0, number - known.round)
        known.seen += passed
        if not self._rounds_seen and not self.done and known.seen < 2:
            self._counted_from = self._clock()
        else:
            self._rounds_seen += passed
        known.round, known.rounds = number, rounds
        if value is not None and math.isfinite(value):
            known.now = value
            known.best = value if self.goal.better(value, known.best) else known.best

    def finished(
        self, key: str, label: str, status: str, *, group: str = "", leaves: Mapping[str, Any] = NONE
    ) -> float | None:
        """Trial `key` has ended. What its goal's metric then was."""
        trial = self.running.pop(key, None)
        self.ended[status] += 1
        if trial is None:
            return None
        self._lengths.append(trial.rounds)
        if status == "finished" and trial.now is not None:
            self.groups[group].append(trial.now)
            if self.goal.better(trial.now, self.best and self.best.value):
                self.best = Best(label, trial.now, leaves)
        return trial.now

    def means(self) -> dict[str, tuple[int, float]]:
        """By arm, of finished trials: how many, and the mean of the goal's metric."""
        return {group: (len(values), fmean(values)) for group, values in self.groups.items()}

    def seconds_left(self) -> float | None:
        """From the mean time a round so far; None until a trial has ended or every running one has shown two rounds."""
        if self.total <= self.done:
            return 0.0
        if not self._rounds_seen or self._counted_from is None:
            return None
        running = list(self.running.values())
        if not self._lengths and any(trial.seen < 2 for trial in running):
            return None
        lengths = self._lengths + [trial.rounds for trial in running]
        waiting = max(0, self.total - self.done - len(running))
        rounds = waiting * sum(lengths) / len(lengths) + sum(trial.rounds - trial.round for trial in running)
        return rounds * (self._clock() - self._counted_from) / self._rounds_seen
