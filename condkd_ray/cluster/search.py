"""A search: Tune runs trials on the connected cluster as they are proposed, and stops poor ones early."""

import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from condkd_ray.cluster.files import clear_attempts, halt_path, last_reason, trial_file, trial_folder
from condkd_ray.cluster.gpu_memory import check_packing
from condkd_ray.cluster.jobs import Job, Packer, SearchJobs
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.limits import pool_of
from condkd_ray.cluster.storage_check import marked
from condkd_ray.cluster.sweep import Monitor, TrialObserver, run_in_tune
from condkd_ray.cluster.trainable import PAUSED, UNTESTED, WorkerContext
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import put_text, remove
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import passed

KEPT_EVERY = 5.0
"""Seconds between two writes of the used budget; the use since the last write is lost if the driver is killed."""


class GpuBudget:
    """A budget in GPU seconds: the GPUs that trials hold, times the seconds for which they hold them, used or idle.

    `seconds`: the whole budget. `before`: the part of it that earlier runs have used. `keep`: called with the used
    seconds, at most every `KEPT_EVERY` seconds, and at the end. All of them are GPU seconds.
    """

    def __init__(self, seconds: float, before: float = 0.0, keep: Callable[[float], None] = lambda used: None) -> None:
        self._seconds, self._used, self._keep = seconds, before, keep
        self._held: dict[str, tuple[float, float]] = {}
        self._kept = time.monotonic()

    def hold(self, key: str, gpus: float) -> None:
        """Count `gpus` GPUs as held by trial `key` from now on."""
        self.release(key)
        self._held[key] = gpus, time.monotonic()

    def release(self, key: str) -> None:
        """Count the GPUs of trial `key` as free; no effect if it holds none."""
        gpus, since = self._held.pop(key, (0.0, 0.0))
        self._used += gpus * (time.monotonic() - since)

    @property
    def used(self) -> float:
        """GPU seconds used so far."""
        now = time.monotonic()
        return self._used + sum(gpus * (now - since) for gpus, since in self._held.values())

    @property
    def spent(self) -> bool:
        """True when the budget is used up."""
        used = self.used
        if time.monotonic() - self._kept >= KEPT_EVERY:
            self._kept = time.monotonic()
            self._keep(used)
        return used >= self._seconds

    def close(self) -> None:
        """Release all trials and pass the final sum to `keep`."""
        for key in list(self._held):
            self.release(key)
        self._keep(self._used)


class Proposer(TrialObserver, Protocol):
    """Decides what runs in a search. Until a trial has `ended`, nothing passed to it depends on a test image."""

    def propose(self) -> PlannedTrial[Prepared] | Literal["later"] | None:
        """Return the next trial, which resumes from its checkpoint if it has one; None if no trial is left.

        Returns "later" if the next trial depends on the results of running trials; at least one must be running then.
        """
        ...

    def continues(self, trial: PlannedTrial) -> bool:
        """Return whether a trial is to continue after the round that was reported last."""
        ...

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Handle the outcome of a trial that has finished all rounds, before it is tested."""
        ...

    def paused(self, trial: PlannedTrial) -> None:
        """Handle a trial that pauses after its round `lineage.pause_after`."""
        ...


def search(driver: Proposer, options: ClusterOptions, gpu_budget: GpuBudget | None = None) -> bool:
    """Run the trials that `driver` proposes until it proposes no more. Their files are handled as in a sweep.

    Every trial is blind: it reads test images only after the driver has received all its other results. Once
    `gpu_budget` is spent no trial starts, and each running one stops after its round, as at the deadline. Returns False
    after Ctrl-C, or if the deadline came first or the budget was spent. Raises `InputError`, `StorageFullError`,
    `ClusterError` and the exception that `driver` has raised, as `condkd_ray.cluster.sweep.sweep` does; but the driver
    has to propose trials whose images fit into the pool, see `condkd_ray.cluster.pool.limits.check_limit`.
    """
    jobs, budget = SearchJobs(), gpu_budget or GpuBudget(math.inf)
    halt_path(options.storage_root).unlink(missing_ok=True)
    try:
        with marked(options.storage_root) as marker, pool_of(options) as pool:
            place, budgeted = (options.storage_root, pool, jobs, options), gpu_budget is not None
            context = WorkerContext(*place, blind=True, budgeted=budgeted, marker=marker)
            monitor = SearchMonitor(driver, context, jobs, budget)
            run_in_tune(monitor, context)
            return monitor.complete
    except KeyboardInterrupt:
        return False
    finally:
        jobs.close()
        budget.close()
        if gpu_budget is not None:
            halt_path(options.storage_root).unlink(missing_ok=True)


class SearchMonitor:
    """The `SearchListener` of a search: proposes trials, follows them by a `Monitor`, and counts the GPUs they hold."""

    def __init__(self, driver: Proposer, context: WorkerContext, jobs: SearchJobs, budget: GpuBudget) -> None:
        self._driver, self._context, self._jobs, self._budget = driver, context, jobs, budget
        self._monitor, self._packer = Monitor(context, driver), Packer()
        self._sent: dict[str, Job] = {}
        self._pausing = set[str]()
        self._assigned = set[str]()
        """Trials proposed but not started yet: Tune has them and starts them when it can."""
        self._alone: str | None = None
        """The trial that was set aside for lack of memory and now runs alone."""
        self._halting = self._exhausted = False
        self.memory = self._monitor.memory
        self.error: Exception | None = None

    @property
    def complete(self) -> bool:
        """True when no trial is left to propose and all have ended."""
        return self._exhausted and not self._monitor.open

    def propose(self) -> dict[str, Any] | str | None:
        """Return the setup of the next trial, whose job has been sent; "later" or None as `Proposer.propose` does.

        Raises `InputError` if the cluster cannot run the proposed trial.
        """
        if self._late:
            return None
        if self._alone is not None or self._monitor.dropped:
            return self._again()
        if self._exhausted:
            return None
        trial = self._driver.propose()
        if trial is None:
            self._exhausted = True
        if trial is None or isinstance(trial, str):
            return trial
        for key in trial.lineage.deletes:
            self._context.pool.delete.remote(key)
            remove(trial_folder(self._context.folder, key))
        job, options = self._packer.job(trial), self._context.options
        options.check([trial.config])
        if not self._sent:
            # Check the first trial only: the check waits for a whole GPU, and trials on it could not end meanwhile.
            check_packing([job], options.gpus_per_trial, options.per_producer.gpus, options.device_pool_limit)
        clear_attempts(trial_folder(self._context.folder, trial.key))
        self._sent[trial.key] = job
        self._monitor.add(trial)
        return self._setup(job)

    def _again(self) -> dict[str, Any] | str:
        """Return the setup of the first dropped trial; "later" while it waits for memory, or another runs alone."""
        if self._alone is not None:
            return "later"
        key = self._monitor.dropped[0]
        aside = self.memory.is_aside(key)
        if self.memory.must_wait(key, alone=not self._monitor.running | self._assigned):
            return "later"
        self._alone = key if aside else None
        return self._setup(self._sent[self._monitor.dropped.pop(0)])

    def _setup(self, job: Job) -> dict[str, Any]:
        """Send a trial's job and return the setup for Tune."""
        self._jobs.put(job)
        self._assigned.add(job.key)
        return {"key": job.key}

    def _left(self, key: str) -> None:
        """Record that Tune no longer has the trial: it holds no GPU, and others may run."""
        self._budget.release(key)
        self._assigned.discard(key)
        if key == self._alone:
            self._alone = None

    @property
    def _late(self) -> bool:
        """True when no further trial is to start."""
        return passed(self._context.options.deadline) or self._budget.spent

    @property
    def over(self) -> bool:
        """True once the deadline has passed or the GPU budget is spent, and every running trial has stopped."""
        if self._budget.spent and not self._halting:
            self._halting = True
            put_text(halt_path(self._context.folder), "the GPU budget is spent")
        return self._monitor.over or (self._halting and not self._monitor.running)

    def producers(self, key: str) -> int:
        """Return the number of producers of a trial."""
        return self._monitor.producers(key)

    def started(self, key: str) -> None:
        """Count the GPUs that the trial and its producers hold from now on."""
        self._assigned.discard(key)
        self._monitor.started(key)
        options = self._context.options
        self._budget.hold(key, options.gpus_per_trial + self.producers(key) * options.per_producer.gpus)

    def reported(self, key: str, result: dict[str, Any]) -> None:
        """Handle a report: a round, a pause, or the outcome before the test."""
        self._monitor.reported(key, result)
        if PAUSED in result:
            self._pausing.add(key)
        if UNTESTED in result:
            outcome = load_outcome(trial_file(self._context.folder, key, "untested"))
            self._driver.untested(self._monitor.trials[key], outcome)

    def continues(self, key: str) -> bool:
        """Return whether the trial is to continue."""
        return self._driver.continues(self._monitor.trials[key])

    def retried(self, key: str, reason: str) -> None:
        """Send the job again, because it may have been lost with a node."""
        self._budget.release(key)
        self._monitor.retried(key, reason)
        self._jobs.put(self._sent[key])

    def drop(self, key: str, reason: str = "") -> None:
        """Record that Tune has given up a trial that is to be tried again; it is proposed next."""
        self._left(key)
        self._monitor.drop(key, reason)

    def ended_for_memory(self, key: str, reason: str) -> None:
        """Record that Ray has repeatedly ended a trial for lack of memory; it is proposed again once no other runs."""
        self._left(key)
        self._monitor.ended_for_memory(key, reason)

    def take_dropped(self) -> list[str]:
        """Return the keys of the dropped trials, which stay in the list until they are proposed again.

        Empty if no further trial is to start.
        """
        return [] if self._late else list(self._monitor.dropped)

    def failed(self, key: str, reason: str) -> None:
        """Handle a trial that was given up."""
        self._left(key)
        self._monitor.failed(key, reason)

    def completed(self, key: str) -> None:
        """Handle a trial that has stored its outcome, used up its attempts, pauses, or was stopped early."""
        self._left(key)
        monitor, folder = self._monitor, self._context.folder
        if key in self._pausing:
            monitor.paused(key)
            self._driver.paused(monitor.trials[key])
        elif key in monitor.running - monitor.stopped and not (
            trial_file(folder, key, "outcome").is_file() or last_reason(trial_folder(folder, key))
        ):
            monitor.pruned(key)
        else:
            monitor.completed(key)
        if key not in monitor.open:
            self._jobs.remove(key)
