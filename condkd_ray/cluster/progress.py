"""How a sweep's driver follows its trials: what they report, how they end, and what then can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from condkd_ray.cluster.attempts import last_reason
from condkd_ray.cluster.trainable import FULL, OUT_OF_TIME, Work, outcome_path, trial_folder
from condkd_ray.cluster.trials import Trial
from condkd_ray.disk import StorageFullError
from condkd_ray.method import Metrics
from condkd_ray.run import Outcome, load_outcome, passed
from condkd_ray.shell import say
from condkd_ray.storage import remove


class Progress:
    """The listener of a sweep; see `condkd_ray.cluster.events`."""

    def __init__(
        self,
        trials: Sequence[Trial],
        work: Work,
        on_round: Callable[[Trial, Metrics], None],
        on_outcome: Callable[[Trial, Outcome], None],
    ) -> None:
        self._trials = {trial.key: trial for trial in trials}
        self._work = work
        self._on_round, self._on_outcome = on_round, on_outcome
        self._sharers: dict[str, set[str]] = defaultdict(set)
        for key, job in work.jobs.items():
            self._sharers[job.pool_key].add(key)
        self._history: dict[str, list[Metrics]] = {trial.key: [] for trial in trials}
        self.open = set(self._trials)
        self._running: set[str] = set()
        self._stopped: set[str] = set()
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether the deadline has come, and every trial that ran has stopped at it."""
        return passed(self._work.deadline) and not self._running

    def started(self, key: str) -> None:
        """At its deadline it must be waited for."""
        self._running.add(key)

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A trial that was killed tells its first rounds again."""
        if FULL in result:
            raise StorageFullError(result[FULL])
        if OUT_OF_TIME in result:
            self._stopped.add(key)
        metrics = {name: value for name, value in result.items() if "/" in name or name == "round"}
        if metrics.get("round", 0) > len(self._history[key]):
            self._history[key].append(metrics)
            self._on_round(self._trials[key], metrics)

    def retried(self, key: str, reason: str) -> None:
        """Nobody has to do anything, but should know why this takes longer."""
        say(f"{self._trials[key].label}: {reason}; it goes on from its checkpoint")

    def completed(self, key: str) -> None:
        """Fetch the outcome, and once it is in good hands clear up behind the trial."""
        started, path = key in self._running, outcome_path(self._work.folder, key)
        self._running.discard(key)
        # Those that never started are ended by Tune when the sweep is over.
        if not started or key in self._stopped:
            return
        if not path.is_file():
            return self.failed(key, last_reason(trial_folder(self._work.folder, key)))
        self._over(key, load_outcome(path))
        place = self._work.jobs[key].pool_key
        self._sharers[place].discard(key)
        if not self._sharers[place]:
            self._work.pool.forget.remote(place)
        remove(trial_folder(self._work.folder, key))

    def failed(self, key: str, reason: str) -> None:
        """Checkpoint and chunks stay, so that a later sweep can go on from them."""
        self._running.discard(key)
        history = self._history[key]
        self._over(
            key, Outcome(status="failed", reason=reason, metrics={}, history=history, predictions=[], images=None)
        )

    def _over(self, key: str, outcome: Outcome) -> None:
        self._on_outcome(self._trials[key], outcome)
        self.open.discard(key)
