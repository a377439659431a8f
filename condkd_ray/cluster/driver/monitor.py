"""How a sweep's driver follows its trials: what they report, how they end, and what then can go."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from condkd_ray.cluster.worker.paths import outcome_path, trial_folder
from condkd_ray.cluster.worker.retries import last_reason
from condkd_ray.cluster.worker.trainable import FULL, OUT_OF_TIME, WorkerContext
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Status
from condkd_ray.core.storage import StorageFullError, remove
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import passed

log = logging.getLogger(__name__)


class TrialObserver(Protocol):
    """Is told of trials, in the driver."""

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """A trial has ended a round. Each is told once, in order."""
        ...

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """A trial is over: finished, stopped early (`pruned`), or failed. Told once, before its files are deleted."""
        ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one, told in this order."""

    of: Sequence[TrialObserver]

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Tell each of a round."""
        for one in self.of:
            one.round(trial, metrics)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Tell each of an end."""
        for one in self.of:
            one.ended(trial, outcome)


class Monitor:
    """Follows a sweep; the `Listener` of `condkd_ray.cluster.driver.tune_hooks`.

    `error`: what its methods raised, put there by the hooks, as Tune would take it for a failure of the trial. The
    sweep is then stopped, and nothing more is heard.
    """

    def __init__(self, context: WorkerContext, observer: TrialObserver) -> None:
        self._context, self._observer = context, observer
        self.trials: dict[str, PlannedTrial] = {}
        self._sharers: dict[str, set[str]] = defaultdict(set)
        self._history: dict[str, list[Metrics]] = {}
        self._workers: dict[str, tuple[str, int]] = {}
        self.open = set[str]()
        self.running = set[str]()
        self.stopped = set[str]()
        self.error: Exception | None = None

    def add(self, trial: PlannedTrial) -> None:
        """One more trial."""
        self.trials[trial.key], self._history[trial.key] = trial, []
        self._sharers[trial.place[1]].add(trial.key)
        self.open.add(trial.key)

    @property
    def over(self) -> bool:
        """Whether the deadline has come, and every trial that ran has stopped at it."""
        return passed(self._context.options.deadline) and not self.running

    def started(self, key: str) -> None:
        """The trial has a process of its own: at the deadline it must be waited for."""
        self.running.add(key)

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A round was reported; a trial that was killed tells its first rounds again."""
        if FULL in result:
            raise StorageFullError(result[FULL])
        if OUT_OF_TIME in result:
            self.stopped.add(key)
        worker = result.get("hostname", ""), result.get("pid", 0)
        if self._workers.get(key) != worker:
            self._workers[key] = worker
            log.debug(f"{self.trials[key].label} runs on {worker[0]}, process {worker[1]}")
        metrics = {name: value for name, value in result.items() if "/" in name or name == "round"}
        if metrics.get("round", 0) > len(self._history[key]):
            self._history[key].append(metrics)
            self._observer.round(self.trials[key], metrics)

    def retried(self, key: str, reason: str) -> None:
        """The trial was interrupted, and will go on."""
        log.info(f"{self.trials[key].label}: {reason}; it goes on from its checkpoint")

    def completed(self, key: str) -> None:
        """The trial has ended by itself: it has left its outcome, or raised its last exception."""
        started, path = key in self.running, outcome_path(self._context.folder, key)
        self.running.discard(key)
        # Those that never started are ended by Tune when the sweep is over.
        if not started or key in self.stopped:
            return
        if path.is_file():
            self._finish(key, load_outcome(path))
        else:
            self.failed(key, last_reason(trial_folder(self._context.folder, key)))

    def failed(self, key: str, reason: str) -> None:
        """The trial was given up. Checkpoint and chunks stay, so that a later sweep can go on from them."""
        self.running.discard(key)
        self._end(key, self._outcome_so_far(key, "failed", reason))

    def pruned(self, key: str) -> None:
        """The trial was stopped early."""
        self.running.discard(key)
        self._finish(key, self._outcome_so_far(key, "pruned"))

    def rested(self, key: str) -> None:
        """The trial has stopped for its heirs: its files stay."""
        self.running.discard(key)
        self.open.discard(key)

    def _outcome_so_far(self, key: str, status: Status, reason: str = "") -> Outcome:
        """Of a trial that has left none."""
        history, (node, _) = self._history[key], self._workers.get(key, ("", 0))
        return Outcome(status=status, reason=reason, history=history, node=node)

    def _finish(self, key: str, outcome: Outcome) -> None:
        """Report the outcome, then delete the trial's files, and its samples once nobody shares them any more."""
        self._end(key, outcome)
        pool_key = self.trials[key].place[1]
        self._sharers[pool_key].discard(key)
        if not self._sharers[pool_key]:
            self._context.pool.forget.remote(pool_key)
        remove(trial_folder(self._context.folder, key))

    def _end(self, key: str, outcome: Outcome) -> None:
        self._observer.ended(self.trials[key], outcome)
        self.open.discard(key)
