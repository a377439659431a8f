"""A search: trials that are proposed one by one, run by Tune on the connected cluster, and stopped where poor."""

import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from condkd_ray.cluster.files import halt_path, last_reason, start_anew, trial_file, trial_folder
from condkd_ray.cluster.gpu_memory import check_packing
from condkd_ray.cluster.jobs import Job, Packer, SearchJobs
from condkd_ray.cluster.options import ClusterOptions, crew_size
from condkd_ray.cluster.pool import pool_of
from condkd_ray.cluster.sweep import Monitor, TrialObserver, fit
from condkd_ray.cluster.trainable import RESTS, UNTESTED, WorkerContext
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import put_text, remove
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import passed

KEPT_EVERY = 5.0
"""Seconds between two times that it is written down; as much is forgotten where the driver is killed."""


class GpuBudget:
    """GPUs times seconds for which trials hold them, used or not.

    `seconds`: how much there is in all; `before`: of it used by earlier runs. `keep` hears now and then, and at the
    end, how much has been used.
    """

    def __init__(self, seconds: float, before: float = 0.0, keep: Callable[[float], None] = lambda used: None) -> None:
        self._seconds, self._used, self._keep = seconds, before, keep
        self._held: dict[str, tuple[float, float]] = {}
        self._kept = time.monotonic()

    def hold(self, key: str, gpus: float) -> None:
        """Trial `key` has so many GPUs from now on."""
        self.release(key)
        self._held[key] = gpus, time.monotonic()

    def release(self, key: str) -> None:
        """It has them no more; nothing where it had none."""
        gpus, since = self._held.pop(key, (0.0, 0.0))
        self._used += gpus * (time.monotonic() - since)

    @property
    def used(self) -> float:
        """GPU seconds so far."""
        now = time.monotonic()
        return self._used + sum(gpus * (now - since) for gpus, since in self._held.values())

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        used = self.used
        if time.monotonic() - self._kept >= KEPT_EVERY:
            self._kept = time.monotonic()
            self._keep(used)
        return used >= self._seconds

    def close(self) -> None:
        """Nobody holds any more."""
        for key in list(self._held):
            self.release(key)
        self._keep(self._used)


class Proposer(TrialObserver, Protocol):
    """Who decides in a search. Nothing it is told before a trial has `ended` has to do with a test image."""

    def propose(self) -> PlannedTrial[Prepared] | Literal["later"] | None:
        """The next trial, to be run from its checkpoint where it has one; None: there is no other.

        `later`: that depends on what comes of those that run, of which there must be some.
        """
        ...

    def goes_on(self, trial: PlannedTrial) -> bool:
        """Whether a trial shall go on after the round that was heard of last."""
        ...

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """A trial has ended all its rounds."""
        ...

    def rested(self, trial: PlannedTrial) -> None:
        """A trial has come to the round after which it rests."""
        ...


def search(driver: Proposer, options: ClusterOptions, gpu_budget: GpuBudget | None = None) -> bool:
    """Run what `driver` proposes until it proposes nothing more; what becomes of a trial's files: as in a sweep.

    Each trial is blind: it looks at test images once all else that came of it has been heard of. Once `gpu_budget` is
    spent no trial starts, and each that runs stops after its round, as at the deadline. False after Ctrl-C, or when the
    deadline came first, or the budget was spent; raises as `condkd_ray.cluster.sweep.sweep`.
    """
    jobs, budget = SearchJobs(), gpu_budget or GpuBudget(math.inf)
    halt_path(options.place).unlink(missing_ok=True)
    try:
        # How large chunks will be nobody knows yet; a limit below one is refused as soon as there is a trial.
        with pool_of(options, [0]) as pool:
            budgeted = gpu_budget is not None
            context = WorkerContext(options.place, pool, jobs, options, blind=True, budgeted=budgeted)
            monitor = SearchMonitor(driver, context, jobs, budget)
            fit(monitor, context)
            return monitor.complete
    except KeyboardInterrupt:
        return False
    finally:
        jobs.close()
        budget.close()
        if gpu_budget is not None:
            halt_path(options.place).unlink(missing_ok=True)


class SearchMonitor:
    """The `Listener` of a search: a `Monitor` of the trials proposed so far, with what a search does beside that."""

    def __init__(self, driver: Proposer, context: WorkerContext, jobs: SearchJobs, budget: GpuBudget) -> None:
        self._driver, self._context, self._jobs, self._budget = driver, context, jobs, budget
        self._monitor, self._packer = Monitor(context, driver), Packer()
        self._sent: dict[str, Job] = {}
        self._resting = set[str]()
        self._handed = set[str]()
        """Proposed, and not heard of since: Tune has them, and starts them when it can."""
        self._alone: str | None = None
        """Who was set aside and now has the memory for itself."""
        self._halting = self._exhausted = False
        self.memory = self._monitor.memory
        self.error: Exception | None = None

    @property
    def complete(self) -> bool:
        """Whether there is no other trial, and all have ended."""
        return self._exhausted and not self._monitor.open

    def propose(self) -> dict[str, Any] | str | None:
        """The setup of the next trial, whose job has been sent; or the driver's answer."""
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
            self._context.pool.forget.remote(key)
            remove(trial_folder(self._context.folder, key))
        job, options = self._packer.job(trial), self._context.options
        options.check([trial.config])
        if not self._sent:
            # Later ones may hold the GPUs that it waits for, and could not end before this has heard of them.
            check_packing([job], options.gpus_per_trial, options.per_producer.gpus, options.device_pool_limit)
        start_anew(trial_folder(self._context.folder, trial.key))
        self._sent[trial.key] = job
        self._monitor.add(trial)
        return self._setup(job)

    def _again(self) -> dict[str, Any] | str:
        """The setup of the first trial that was dropped; `later` while it waits for memory, or one runs alone."""
        if self._alone is not None:
            return "later"
        key = self._monitor.dropped[0]
        aside = self.memory.is_aside(key)
        if self.memory.waits(key, alone=not self._monitor.running | self._handed):
            return "later"
        self._alone = key if aside else None
        return self._setup(self._sent[self._monitor.dropped.pop(0)])

    def _setup(self, job: Job) -> dict[str, Any]:
        """Of a trial, as Tune is given it; its job has been sent."""
        self._jobs.put(job)
        self._handed.add(job.key)
        return {"key": job.key, "crew": crew_size(job.config)}

    def _left(self, key: str) -> None:
        """Tune has the trial no more: it holds no GPU, and others may run."""
        self._budget.release(key)
        self._handed.discard(key)
        if key == self._alone:
            self._alone = None

    @property
    def _late(self) -> bool:
        """Whether no trial shall start any more."""
        return passed(self._context.options.deadline) or self._budget.spent

    @property
    def over(self) -> bool:
        """Whether the deadline has come or the GPU budget is spent, and every trial that ran has stopped."""
        if self._budget.spent and not self._halting:
            self._halting = True
            put_text(halt_path(self._context.folder), "the GPU budget is spent")
        return self._monitor.over or (self._halting and not self._monitor.running)

    def started(self, key: str) -> None:
        """It holds GPUs from now on, its own and its producers'."""
        self._handed.discard(key)
        self._monitor.started(key)
        options = self._context.options
        producers = crew_size(self._sent[key].config)
        self._budget.hold(key, options.gpus_per_trial + producers * options.per_producer.gpus)

    def heard(self, key: str, result: dict[str, Any]) -> None:
        """A round, or all of them."""
        self._monitor.heard(key, result)
        if RESTS in result:
            self._resting.add(key)
        if UNTESTED in result:
            outcome = load_outcome(trial_file(self._context.folder, key, "untested"))
            self._driver.untested(self._monitor.trials[key], outcome)

    def goes_on(self, key: str) -> bool:
        """Whether the trial shall go on."""
        return self._driver.goes_on(self._monitor.trials[key])

    def retried(self, key: str, reason: str) -> None:
        """Its job is sent again: it may have been lost with a node."""
        self._budget.release(key)
        self._monitor.retried(key, reason)
        self._jobs.put(self._sent[key])

    def drop(self, key: str) -> None:
        """Tune has given up a trial that shall be tried again; it is the next to be proposed."""
        self._left(key)
        self._monitor.drop(key)

    def starve(self, key: str, reason: str) -> None:
        """Likewise, as memory was short; it is proposed once no other runs."""
        self._left(key)
        self._monitor.starve(key, reason)

    def take_dropped(self) -> list[str]:
        """Those that are still to be proposed, if any trial shall start."""
        return [] if self._late else list(self._monitor.dropped)

    def failed(self, key: str, reason: str) -> None:
        """It was given up."""
        self._left(key)
        self._monitor.failed(key, reason)

    def completed(self, key: str) -> None:
        """It has left its outcome, was given up, rests, or was stopped early."""
        self._left(key)
        monitor, folder = self._monitor, self._context.folder
        if key in self._resting:
            monitor.rested(key)
            self._driver.rested(monitor.trials[key])
        elif key in monitor.running - monitor.stopped and not (
            trial_file(folder, key, "outcome").is_file() or last_reason(trial_folder(folder, key))
        ):
            monitor.pruned(key)
        else:
            monitor.completed(key)
        if key not in monitor.open:
            self._jobs.remove(key)
