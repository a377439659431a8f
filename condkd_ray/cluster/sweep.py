"""A sweep: Tune runs given trials on the connected cluster. Tune schedules and retries them.

The only files of Tune that are read are the texts of errors.

Tune pickles all of its arguments. So the hooks hold a token that identifies a listener, not the listener itself.
"""

import logging
import re
import secrets
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune import Callback, ProgressReporter, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from condkd_ray.cluster.connection import handling
from condkd_ray.cluster.files import clear_attempts, last_reason, trial_file, trial_folder
from condkd_ray.cluster.gpu_memory import check_packing
from condkd_ray.cluster.jobs import Packer, SweepJobs
from condkd_ray.cluster.lost import SHORT, treat_as_lost
from condkd_ray.cluster.memory_shortage import MAX_SHORTAGES, MemoryShortage
from condkd_ray.cluster.options import ClusterOptions, num_producers
from condkd_ray.cluster.pool.limits import check_limit, pool_of, round_of
from condkd_ray.cluster.storage_check import marked
from condkd_ray.cluster.trainable import FULL, MEMORY, METRICS, OUT_OF_TIME, UNUSABLE, WorkerContext, run
from condkd_ray.core.method import ClusterError, Metrics
from condkd_ray.core.records import Outcome, Status
from condkd_ray.core.storage import StorageFullError, remove
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import passed

log = logging.getLogger(__name__)

UNLIMITED = -1
"""Tune's value of `max_failures` for an unlimited number of retries."""
MAX_STALLED = 10
"""Number of attempts in a row without a new round after which a trial is given up (our choice).

All attempts count, however they end. Tune does not count a killed process as a failure: without this limit a process
that always dies at the same place, before our code begins, would be restarted forever.
"""


class TrialObserver(Protocol):
    """Receives the rounds and outcomes of trials, in the driver."""

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """Handle the metrics of a finished round. Called once for each round, in order."""
        ...

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """Handle a trial's outcome: finished, `pruned` (stopped early) or failed.

        Called once. The trial's files are deleted afterwards.
        """
        ...


class Monitor:
    """Follows the trials of a sweep and reports to an observer; a `Listener`.

    `trials`: the added trials by key. `memory`: handles trials that Ray ends for lack of memory. The other attributes
    have keys of trials. `open`: trials that have neither ended nor paused. `running`: trials with a process. `stopped`:
    trials that stopped because of the deadline or a halt. `dropped`: trials that Tune has given up and that are to be
    tried again.

    `error`: an exception raised by one of the methods. The hooks store it here, as Tune would take it for a failure of
    the trial. The sweep then stops, and the hooks call no further method.
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
        self.dropped = list[str]()
        self.memory = MemoryShortage()
        self.error: Exception | None = None

    def add(self, trial: PlannedTrial) -> None:
        """Add a trial."""
        self.trials[trial.key], self._history[trial.key] = trial, []
        self._sharers[trial.pool_key].add(trial.key)
        self.open.add(trial.key)

    @property
    def over(self) -> bool:
        """True once the deadline has passed and every running trial has stopped."""
        return passed(self._context.options.deadline) and not self.running

    def producers(self, key: str) -> int:
        """Return the number of producers of a trial."""
        return num_producers(self.trials[key].config)

    def started(self, key: str) -> None:
        """Record that the trial has a process: at the deadline the sweep waits for it."""
        self.running.add(key)

    def reported(self, key: str, result: dict[str, Any]) -> None:
        """Handle a report of a trial. A restarted trial reports its first rounds again; these repeats are ignored.

        Raises `StorageFullError` if the trial reports that there is no room for its files, and `ClusterError` if it
        reports that its node cannot use the storage.
        """
        self.memory.record(result.get(MEMORY, 0) / 1e9)
        if UNUSABLE in result:
            raise ClusterError(result[UNUSABLE])
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
        """Log that the trial was interrupted and will be resumed."""
        self.memory.count_end(reason)
        log.info(f"{self.trials[key].label}: {reason}; it resumes from its checkpoint")

    def drop(self, key: str, reason: str = "") -> None:
        """Record that Tune has given up a trial that is to be tried again.

        `reason`: the reason of its last end; empty if `retried` has received it.
        """
        self.memory.count_end(reason)
        self.running.discard(key)
        self.dropped.append(key)

    def ended_for_memory(self, key: str, reason: str) -> None:
        """Record that Tune has given up a trial that Ray has repeatedly ended for lack of memory.

        The trial is to run again, alone.
        """
        self.drop(key, reason)
        self.memory.set_aside(key, self.trials[key].label)

    def take_dropped(self) -> list[str]:
        """Return the keys of the dropped trials and clear the list."""
        taken, self.dropped = self.dropped, []
        return taken

    def completed(self, key: str) -> None:
        """Handle a trial that ended by itself: it has stored its outcome or used up its attempts."""
        started, path = key in self.running, trial_file(self._context.folder, key, "outcome")
        self.running.discard(key)
        # Tune also completes trials that never started, when the sweep is over.
        if not started or key in self.stopped:
            return
        if path.is_file():
            self._finish(key, load_outcome(path))
        else:
            self.failed(key, last_reason(trial_folder(self._context.folder, key)))

    def failed(self, key: str, reason: str) -> None:
        """End a trial that was given up, for `reason`. Its checkpoint and chunks stay; a later sweep can resume it."""
        self.running.discard(key)
        self.memory.count_end(reason)
        advice = f"; {self.memory.advice}" if SHORT in reason else ""
        self._end(key, self._outcome_so_far(key, "failed", f"{reason}{advice}"))

    def pruned(self, key: str) -> None:
        """End a trial that was stopped early."""
        self.running.discard(key)
        self._finish(key, self._outcome_so_far(key, "pruned"))

    def paused(self, key: str) -> None:
        """Close a trial that pauses so that later trials can take over its state: its files stay."""
        self.running.discard(key)
        self.open.discard(key)

    def _outcome_so_far(self, key: str, status: Status, reason: str = "") -> Outcome:
        history, (node, _) = self._history[key], self._workers.get(key, ("", 0))
        return Outcome(status=status, reason=reason, history=history, node=node)

    def _finish(self, key: str, outcome: Outcome) -> None:
        """Report the outcome, then delete the trial's files.

        Its samples are deleted once all trials that share them have finished or were pruned; a failed trial keeps them.
        """
        self._end(key, outcome)
        pool_key = self.trials[key].pool_key
        self._sharers[pool_key].discard(key)
        if not self._sharers[pool_key]:
            self._context.pool.delete.remote(pool_key)
        remove(trial_folder(self._context.folder, key))

    def _end(self, key: str, outcome: Outcome) -> None:
        self._observer.ended(self.trials[key], outcome)
        self.open.discard(key)
        # The outcome has it, and a sweep may have thousands of trials.
        self._history[key] = []


class Listener(Protocol):
    """Receives events of trials, by key, in the thread that called `run_in_tune`; a `Monitor` in a sweep."""

    error: Exception | None
    """The exception that one of the methods has raised; None if none has."""
    memory: MemoryShortage

    @property
    def over(self) -> bool:
        """True when no further trial is to start and none runs."""
        ...

    def producers(self, key: str) -> int:
        """Return the number of producers of a trial."""
        ...

    def started(self, key: str) -> None:
        """Handle the start of a process for a trial, also after a failure."""
        ...

    def reported(self, key: str, result: dict[str, Any]) -> None:
        """Handle a report of a trial: the metrics of a round, or one of the keys defined in `trainable`."""
        ...

    def retried(self, key: str, reason: str) -> None:
        """Handle the end of an attempt after which Tune tries the trial again."""
        ...

    def drop(self, key: str, reason: str = "") -> None:
        """Handle a trial that Tune has given up and for which Tune is to be run once more.

        `reason`: the reason of its last end; empty if `retried` has received it.
        """
        ...

    def ended_for_memory(self, key: str, reason: str) -> None:
        """Handle a trial as `drop` does, which Ray has ended `MAX_SHORTAGES` times in a row for lack of memory."""
        ...

    def completed(self, key: str) -> None:
        """Handle a trial whose last attempt has returned, or that Tune has stopped."""
        ...

    def failed(self, key: str, reason: str) -> None:
        """Handle a trial that was given up, for `reason`."""
        ...

    def take_dropped(self) -> list[str]:
        """Return the keys of trials for which Tune is to be run once more."""
        ...


class SearchListener(Listener, Protocol):
    """A `Listener` that also proposes trials and stops them early: a `SearchMonitor`."""

    def propose(self) -> dict[str, Any] | str | None:
        """Return the setup of the next trial; "later" if it depends on trials that still run; None if none is left."""
        ...

    def continues(self, key: str) -> bool:
        """Return whether the trial is to continue after the round that it reported last."""
        ...


LISTENERS: dict[str, Listener] = {}
"""Listeners of the running sweeps and searches, by token. Tune pickles its hooks, so a hook holds only the token."""


class _Hook:
    """Base of the hooks given to Tune; `token` identifies their listener."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token

    def call(self, what: str, *rest: Any) -> Any:
        """Call method `what` of the listener; return None if it raises, or has raised before."""
        listener = LISTENERS[self.token]
        if listener.error is None:
            try:
                return getattr(listener, what)(*rest)
            except Exception as error:
                listener.error = error
        return None


class Events(_Hook, Callback):
    """Passes Tune's events on to the listener, and limits the attempts of each trial."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self._rounds: Counter[str] = Counter()
        self._stalled: Counter[str] = Counter()
        self._shortages: Counter[str] = Counter()
        """Number of times in a row that Ray ended a trial for lack of memory, by key.

        The count restarts when the trial finishes a new round, ends for another reason, or is set aside.
        """
        self._counted: dict[str, int] = {}
        """Tune's iteration in which a trial was last put back, by key: a failure that is reported twice counts once."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Report a start, also after each failure.

        Tune runs a dropped trial as a new one, so the limit of its attempts is set here.
        """
        self._limit(trial)
        self.call("started", trial.config["key"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any):
        """Report a round. A restarted trial first reports all rounds of its checkpoint again."""
        key, number, result = trial.config["key"], result.get("round", 0), unpacked(result)
        if number > self._rounds[key]:
            self._rounds[key], self._stalled[key], self._shortages[key] = number, 0, 0
            trial.max_failures = UNLIMITED
        self.call("reported", key, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Report that the process died, or raised an exception, and that Tune will try again."""
        key, reason = trial.config["key"], _reason(trial)
        self._count(key, reason)
        self._counted[key] = iteration
        self._limit(trial)
        self.call("retried", key, reason)

    def _count(self, key: str, reason: str) -> None:
        """Count the end of an attempt, for `reason`."""
        self._stalled[key] += 1
        self._shortages[key] = self._shortages[key] + 1 if SHORT in reason else 0

    def _limit(self, trial: Any) -> None:
        """Make Tune give up the trial at its next end, if a limit of ends in a row may be reached then."""
        key = trial.config["key"]
        if self._stalled[key] >= MAX_STALLED - 1 or self._shortages[key] >= MAX_SHORTAGES - 1:
            trial.max_failures = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Report that the trial ended without an exception."""
        self.call("completed", trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Report that no retry is left, or that a process died while Tune handed it from one trial to the next.

        Tune (2.60) reports such a death twice: it first puts the trial back and then gives it up, even if
        `max_failures` allows a retry.
        """
        key, reason = trial.config["key"], _reason(trial)
        new = self._counted.pop(key, None) != iteration
        if new:
            self._count(key, reason)
        if self._stalled[key] >= MAX_STALLED:
            self.call("failed", key, f"{MAX_STALLED} attempts in a row without one more round; the last: {reason}")
        elif self._shortages[key] >= MAX_SHORTAGES:
            self._shortages[key] = 0
            self.call("ended_for_memory", key, reason)
        else:
            self.call("drop", key, reason if new else "")


class _Resources(_Hook):
    """Returns the resources of a trial: a bundle for the trial itself, followed by one for each of its producers.

    Tune unpickles this for every trial, so it holds nothing of all trials.
    """

    def __init__(self, token: str, options: ClusterOptions) -> None:
        super().__init__(token)
        self._own, self._each = options.bundle, options.per_producer.bundle

    def __call__(self, setup: dict[str, Any]) -> tune.PlacementGroupFactory:
        producers = LISTENERS[self.token].producers(setup["key"])
        return tune.PlacementGroupFactory([self._own, *[self._each] * producers])


class _StopOnError(_Hook, Stopper):
    """Stops the whole sweep once the listener has raised an error or is over; never a single trial."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        listener = LISTENERS[self.token]
        return listener.error is not None or listener.over


class _Proposing(_Hook, Searcher):
    """A Tune `Searcher` that takes trials from the listener of a search until none is left.

    It replaces Ray's `OptunaSearch`, which cannot resume a study in a storage after its driver has died, counts trials
    stopped early as complete, and leaves trials that end with a NaN running forever; see
    `tests/cluster/test_optuna_search.py`. The study holds all state: nothing is saved or restored here.
    """

    def suggest(self, trial_id: str) -> Any:
        """Return the setup of the next trial: None if it depends on running trials, `FINISHED` if none is left."""
        setup = self.call("propose")
        if setup == "later":
            return None
        return Searcher.FINISHED if setup is None else setup

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `Events` reports the end to the listener."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class _NoReports(ProgressReporter):
    """Reports nothing. In a notebook Tune would display an empty area by default."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None: ...


class InOrder(FIFOScheduler):
    """Runs trials in their order, and retries a trial after any loss of its process."""

    def __init__(self) -> None:
        super().__init__()
        self._open = list[Any]()
        """Trials that have not ended, in their order."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Patch Tune's actor manager before the trial gets a process."""
        treat_as_lost(tune_controller._tune_controller._actor_manager)
        self._open.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first waiting trial. Tune's method looks through all trials, also those that have ended."""
        self._open = [trial for trial in self._open if not trial.is_finished()]
        return next((trial for trial in self._open if trial.status == trial.PENDING), None)


class _Pruning(_Hook, InOrder):
    """An `InOrder` that stops a trial after a round if the listener decides so."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Report the round and decide; Tune calls this before the callbacks, so the round is reported here first."""
        # Only here the result also contains the trial's setup, as "config/" entries.
        own = {k: v for k, v in result.items() if not k.startswith("config/")}
        self.call("reported", trial.config["key"], unpacked(own))
        on = self.call("continues", trial.config["key"])
        return TrialScheduler.STOP if on is False else TrialScheduler.CONTINUE


def unpacked(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of Tune with the metrics of the trial's report as entries of their own."""
    return {**result, **dict(result.get(METRICS, ()))}


def _reason(trial: Any) -> str:
    """Return in one line why a Tune trial failed."""
    # Read the text of the error, never the pickle beside it. This process has just written both files.
    file = trial.error_file
    return reason_in(Path(file).read_text(encoding="utf-8", errors="replace") if file else "")


def reason_in(text: str) -> str:
    """Return the last failure in Tune's error file, as one line: the exception of a trace, or how the process died."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # strip Ray's colours
    lines = plain.rpartition("Failure # ")[2].splitlines()[1:]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ?", line)]
    if any("Traceback" in line or line.startswith("ray::") for line in lines) and raised:
        return raised[-1].strip()
    return f"its process died ({next((line.strip() for line in lines if line.strip()), 'no reason known')})"


def sweep(trials: Sequence[PlannedTrial[Prepared]], options: ClusterOptions, observer: TrialObserver) -> bool:
    """Run `trials` in their order, as many at once as fit.

    First runs one trial of each group that shares samples, then the second of each group, and so on.

    Checkpoints and chunks are in `options.storage_root`, and a later sweep over the same place resumes from them. The
    files of a trial that finished or was pruned are deleted once `observer.ended` has returned, so the observer must
    store all that is to stay. Shared samples are deleted once all trials that share them have finished or were pruned;
    a trial that failed keeps them.

    A trial whose process was killed resumes from its checkpoint any number of times, on another node if its own is
    lost; after `MAX_STALLED` attempts in a row without a new round it is given up. A trial that Ray has ended
    `MAX_SHORTAGES` (3) times in a row for lack of memory is set aside until all others have ended, and then runs alone.

    Args:
        trials: with different keys.
        options: folders, resources and limits.
        observer: receives each trial's rounds, and its outcome as soon as the trial has finished or failed. The reason
            of a failure is one line: a loss was not finite, or the trial was given up. A later sweep can resume the
            trial.

    Returns:
        True if all trials have ended; False after Ctrl-C, or if the deadline has passed.

    Raises:
        InputError: No node has the required resources, a trial needs more of a GPU's memory than its share, the pool's
            limit is smaller than the rounds of images of the trials at once, or a teacher module cannot be pickled.
        ClusterError: A node that has joined later cannot use the storage; the sweep was stopped.
        StorageFullError: There was no room for the files of a trial; the sweep was stopped.
        Exception: What `observer` raised, after the sweep was stopped.
    """
    if not trials:
        return True
    assert len({trial.key for trial in trials}) == len(trials), "keys of trials must differ"
    configs = [trial.config for trial in trials]
    options.check(configs)
    check_limit(options, configs, list(map(round_of, trials)))
    trials, packer = interleaved(trials), Packer()
    try:
        with marked(options.storage_root) as marker, pool_of(options) as pool:
            jobs = SweepJobs(map(packer.job, trials))
            for key in jobs:
                clear_attempts(trial_folder(options.storage_root, key))
            check_packing(jobs.values(), options.gpus_per_trial, options.per_producer.gpus, options.device_pool_limit)
            context = WorkerContext(options.storage_root, pool, jobs, options, marker=marker)
            monitor = Monitor(context, observer)
            for trial in trials:
                monitor.add(trial)
            run_in_tune(monitor, context, [trial.key for trial in trials])
            return not monitor.open
    except KeyboardInterrupt:
        return False


def interleaved(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """Return the trials ordered so that one trial of each pool key comes first, then the second of each key, and so on.

    Trials that share samples then wait less for each other.
    """
    seen: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for trial in trials:
        turns[trial.key] = seen[trial.pool_key]
        seen[trial.pool_key] += 1
    return sorted(trials, key=lambda trial: turns[trial.key])


def run_in_tune(listener: Listener, context: WorkerContext, given: Sequence[str] | None = None) -> None:
    """Run trials with Tune: those with the keys `given`, or, if that is None, those that `listener` proposes.

    If `given` is None, `listener` must be a `SearchListener`. Raises the exception that a method of `listener` has
    raised.
    """
    options = context.options
    # No report carries a checkpoint, so workers never read this folder: other nodes need not see it.
    scratch = options.folder.resolve() / "tune"
    token = secrets.token_hex(8)
    LISTENERS[token], events = listener, Events(token)

    def run_tune(keys: Sequence[str]) -> bool:
        """Run the trials `keys`, or, in a search, the proposed ones; return whether Ctrl-C ended the run."""
        space, search = {"key": tune.grid_search(list(keys))}, dict[str, Any](scheduler=InOrder())
        if given is None:
            space, search = {}, {"search_alg": _Proposing(token), "scheduler": _Pruning(token), "num_samples": -1}
        # Trials that were set aside run alone.
        at_once = 1 if given is not None and listener.memory.release(keys) else options.max_concurrent
        remove(scratch)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, context=context), _Resources(token, options)),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once, **search),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                progress_reporter=_NoReports(),
                stop=_StopOnError(token),
                failure_config=tune.FailureConfig(max_failures=UNLIMITED),
                callbacks=[events],
            ),
        )
        # Tune would leave its own handler in place, which swallows a Ctrl-C that comes after the sweep.
        with handling(signal.SIGINT, before := signal.getsignal(signal.SIGINT)):
            tuner.fit()
            # In the main thread, Tune restores the earlier handler itself only if it has received a Ctrl-C.
            in_main = threading.current_thread() is threading.main_thread()
            return in_main and signal.getsignal(signal.SIGINT) == before

    try:
        interrupted = run_tune(given or ())
        while not interrupted and listener.error is None and (dropped := listener.take_dropped()):
            interrupted = run_tune(dropped)
    finally:
        del LISTENERS[token]
        remove(scratch)
    if listener.error is not None:
        raise listener.error
