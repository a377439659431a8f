"""How a sweep's driver follows its trials: what they report, how they end, and what then can go."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from condkd_ray.cluster.worker.retries import last_reason
from condkd_ray.cluster.worker.trainable import FULL, OUT_OF_TIME, Work, outcome_path, trial_folder
from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.core.files import StorageFullError
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Status
from condkd_ray.core.storage import remove
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.run import passed

log = logging.getLogger(__name__)


class Progress:
    """The listener of a sweep; see `condkd_ray.cluster.driver.tune_hooks`."""

    def __init__(
        self,
        trials: Sequence[Trial],
        work: Work,
        on_round: Callable[[Trial, Metrics], None],
        on_outcome: Callable[[Trial, Outcome], None],
    ) -> None:
        self.work = work
        self._on_round, self._on_outcome = on_round, on_outcome
        self.trials: dict[str, Trial] = {}
        self._places: dict[str, str] = {}
        self._sharers: dict[str, set[str]] = defaultdict(set)
        self._history: dict[str, list[Metrics]] = {}
        self._workers: dict[str, tuple[str, int]] = {}
        self.open = set[str]()
        self.running = set[str]()
        self.stopped = set[str]()
        self.error: Exception | None = None
        for trial in trials:
            self.add(trial, work.jobs[trial.key].pool_key)

    def add(self, trial: Trial, pool_key: str) -> None:
        """One more trial, with its samples at this key of the pool."""
        self.trials[trial.key], self._history[trial.key] = trial, []
        self._places[trial.key] = pool_key
        self._sharers[pool_key].add(trial.key)
        self.open.add(trial.key)

    @property
    def over(self) -> bool:
        """Whether the deadline has come, and every trial that ran has stopped at it."""
        return passed(self.work.deadline) and not self.running

    def started(self, key: str) -> None:
        """At its deadline it must be waited for."""
        self.running.add(key)

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A trial that was killed tells its first rounds again."""
        if FULL in result:
            raise StorageFullError(result[FULL])
        if OUT_OF_TIME in result:
            self.stopped.add(key)
        self._runs_on(key, result.get("hostname", ""), result.get("pid", 0))
        metrics = {name: value for name, value in result.items() if "/" in name or name == "round"}
        if metrics.get("round", 0) > len(self._history[key]):
            self._history[key].append(metrics)
            self._on_round(self.trials[key], metrics)

    def _runs_on(self, key: str, node: str, process: int) -> None:
        if self._workers.get(key) != (node, process):
            self._workers[key] = node, process
            log.debug(f"{self.trials[key].label} runs on {node}, process {process}")

    def retried(self, key: str, reason: str) -> None:
        """Nobody has to do anything, but should know why this takes longer."""
        log.info(f"{self.trials[key].label}: {reason}; it goes on from its checkpoint")

    def completed(self, key: str) -> None:
        """Fetch the outcome."""
        started, path = key in self.running, outcome_path(self.work.folder, key)
        self.running.discard(key)
        # Those that never started are ended by Tune when the sweep is over.
        if not started or key in self.stopped:
            return
        if not path.is_file():
            return self.failed(key, last_reason(trial_folder(self.work.folder, key)))
        self.over_with(key, load_outcome(path))

    def failed(self, key: str, reason: str) -> None:
        """Checkpoint and chunks stay, so that a later sweep can go on from them."""
        self.running.discard(key)
        self._over(key, self.outcome_so_far(key, "failed", reason))

    def outcome_so_far(self, key: str, status: Status, reason: str = "") -> Outcome:
        """Of a trial that has left none."""
        history, (node, _) = self._history[key], self._workers.get(key, ("", 0))
        return Outcome(
            status=status, reason=reason, metrics={}, history=history, predictions=[], images=None, node=node
        )

    def over_with(self, key: str, outcome: Outcome) -> None:
        """Put the outcome into good hands, then clear up behind the trial."""
        self._over(key, outcome)
        place = self._places[key]
        self._sharers[place].discard(key)
        if not self._sharers[place]:
            self.work.pool.forget.remote(place)
        remove(trial_folder(self.work.folder, key))

    def _over(self, key: str, outcome: Outcome) -> None:
        self._on_outcome(self.trials[key], outcome)
        self.open.discard(key)
