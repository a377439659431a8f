"""A sweep: given trials, run by Tune on the connected cluster. Tune schedules and retries; its files are never read.

Tune pickles all that it is given: its hooks here hold a word for who listens, not the listener.
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
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from condkd_ray.cluster.connection import handling
from condkd_ray.cluster.files import last_reason, start_anew, trial_file, trial_folder
from condkd_ray.cluster.gpu_memory import check_packing
from condkd_ray.cluster.jobs import Packer, SweepJobs
from condkd_ray.cluster.lost import SHORT, take_as_lost
from condkd_ray.cluster.memory_shortage import ASIDE, MemoryShortage
from condkd_ray.cluster.options import ClusterOptions, crew_size
from condkd_ray.cluster.pool import chunk_bytes, pool_of
from condkd_ray.cluster.trainable import FULL, MEMORY, OUT_OF_TIME, WorkerContext, run
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome, Status
from condkd_ray.core.storage import StorageFullError, remove
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import load_outcome
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import passed

log = logging.getLogger(__name__)

UNLIMITED = -1
IN_VAIN = 10
"""Attempts in a row, without one more round than ever before, after which a trial is given up (our choice).

However they end. Otherwise a process that always dies at the same place, before our code even begins, would be started
again for ever, as killed processes do not count.
"""


class TrialObserver(Protocol):
    """Is told of trials, in the driver."""

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        """A trial has ended a round. Each is told once, in order."""
        ...

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        """A trial is over: finished, stopped early (`pruned`), or failed. Told once, before its files are deleted."""
        ...


class Monitor:
    """Follows a sweep; a `Listener`.

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
        self.dropped = list[str]()
        self.memory = MemoryShortage()
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
        self.memory.took(result.get(MEMORY, 0) / 1e9)
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
        self.memory.ended(reason)
        log.info(f"{self.trials[key].label}: {reason}; it goes on from its checkpoint")

    def drop(self, key: str) -> None:
        """Tune has given up a trial that shall be tried again."""
        self.running.discard(key)
        self.dropped.append(key)

    def starve(self, key: str, reason: str) -> None:
        """Likewise, after it was ended again and again as memory was short: it shall run alone."""
        self.memory.ended(reason)
        self.memory.set_aside(key, self.trials[key].label)
        self.drop(key)

    def take_dropped(self) -> list[str]:
        """Those dropped trials, each once."""
        taken, self.dropped = self.dropped, []
        return taken

    def completed(self, key: str) -> None:
        """The trial has ended by itself: it has left its outcome, or raised its last exception."""
        started, path = key in self.running, trial_file(self._context.folder, key, "outcome")
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
        self.memory.ended(reason)
        advice = f"; {self.memory.advice}" if SHORT in reason else ""
        self._end(key, self._outcome_so_far(key, "failed", f"{reason}{advice}"))

    def pruned(self, key: str) -> None:
        """The trial was stopped early."""
        self.running.discard(key)
        self._finish(key, self._outcome_so_far(key, "pruned"))

    def rested(self, key: str) -> None:
        """The trial has stopped for its heirs: its files stay."""
        self.running.discard(key)
        self.open.discard(key)

    def _outcome_so_far(self, key: str, status: Status, reason: str = "") -> Outcome:
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


class Listener(Protocol):
    """Hears of trials by their keys, in the driver's main thread: a `Monitor`, or a `SearchMonitor` in a search."""

    error: Exception | None

    memory: MemoryShortage

    @property
    def over(self) -> bool:
        """Whether no more trials shall start, and none runs."""
        ...

    def take_dropped(self) -> list[str]:
        """The keys of trials for which Tune is to be run once more."""
        ...


_listeners: dict[str, Listener] = {}


class _Hook:
    """Of Tune, with the `word` of a listener."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def ask(self, what: str, *rest: Any) -> Any:
        """What the listener answers; None where it raises an error, or has raised one before."""
        listener = _listeners[self.word]
        if listener.error is None:
            try:
                return getattr(listener, what)(*rest)
            except Exception as error:
                listener.error = error
        return None


class _Events(_Hook, Callback):
    """Passes on to the listener, and sees to it that no trial is tried for ever."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self._rounds: Counter[str] = Counter()
        self._in_vain: Counter[str] = Counter()
        self._starved: Counter[str] = Counter()
        """How often in a row a trial was ended as memory was short, since it began, made a round, or was set aside."""
        self._counted: dict[str, int] = {}
        """In which of Tune's steps a trial was put back last: that failure is counted."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Also once more after each failure."""
        self.ask("started", trial.config["key"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any):
        """A round; not a new one where a trial tells what it had told before its process died."""
        key, number = trial.config["key"], result.get("round", 0)
        if number > self._rounds[key]:
            self._rounds[key], self._in_vain[key], self._starved[key] = number, 0, 0
            trial.max_failures = UNLIMITED
        self.ask("heard", key, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """Its process died, or it raised an exception; Tune will try again."""
        key = trial.config["key"]
        self._in_vain[key] += 1
        self._counted[key] = iteration
        reason = _reason(trial)
        self._starved[key] = self._starved[key] + 1 if SHORT in reason else 0
        if self._in_vain[key] >= IN_VAIN - 1 or self._starved[key] >= ASIDE - 1:
            trial.max_failures = 0
        self.ask("retried", key, reason)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        self.ask("completed", trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any):
        """No retry is left; or a process died while it was handed from one trial to the next.

        Tune (2.60) hears of such a death twice: first it puts the trial back, then it gives it up, whatever is allowed.
        """
        key = trial.config["key"]
        self._in_vain[key] += self._counted.pop(key, None) != iteration
        reason = _reason(trial)
        if self._in_vain[key] >= IN_VAIN:
            self.ask("failed", key, f"{IN_VAIN} attempts in a row without one more round; the last: {reason}")
        elif SHORT in reason:
            self._starved[key] = 0
            self.ask("starve", key, reason)
        else:
            self.ask("drop", key)


class _StopOnError(_Hook, Stopper):
    """Stops the whole sweep once the listener has raised an error, or says that it is over; no single trial."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        listener = _listeners[self.word]
        return listener.error is not None or listener.over


class _Proposing(_Hook, Searcher):
    """Asks the listener, that of a search, for trials until it has none left.

    Not Ray's `OptunaSearch`: with a study in a storage it cannot go on after its driver has died, counts trials that
    were stopped early as complete, and leaves those that end with a NaN running for ever: see
    `tests/cluster/test_optuna_search.py`. What is known is in the study: nothing is saved or restored here.
    """

    def suggest(self, trial_id: str) -> Any:
        """The setup of the next trial; None where it depends on those that run."""
        setup = self.ask("propose")
        if setup == "later":
            return None
        return Searcher.FINISHED if setup is None else setup

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The listener hears it from `_Events`."""

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _InOrder(FIFOScheduler):
    """Trials run in their order, and whatever way a process of theirs is lost in, they are tried again."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Before the trial has a process."""
        take_as_lost(tune_controller._tune_controller._actor_manager)


class _Pruning(_Hook, _InOrder):
    """Moreover the listener says after each round whether a trial goes on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Asked before the callbacks hear of the round, so that it is told first."""
        # Here, and here alone, it comes with the trial's setup spread out in it.
        self.ask("heard", trial.config["key"], {k: v for k, v in result.items() if not k.startswith("config/")})
        on = self.ask("goes_on", trial.config["key"])
        return TrialScheduler.STOP if on is False else TrialScheduler.CONTINUE


def _reason(trial: Any) -> str:
    """One line on why a Tune trial failed."""
    # The text of the error, never the pickle beside it. Our own process has just written it there.
    file = trial.error_file
    return reason_in(Path(file).read_text(encoding="utf-8", errors="replace") if file else "")


def reason_in(text: str) -> str:
    """The last failure of Tune's error file in one line: the exception a trace ends with, or how the process died."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # Ray colours it
    lines = plain.rpartition("Failure # ")[2].splitlines()[1:]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ?", line)]
    if any("Traceback" in line or line.startswith("ray::") for line in lines) and raised:
        return raised[-1].strip()
    return f"its process died ({next((line.strip() for line in lines if line.strip()), 'no reason known')})"


def sweep(trials: Sequence[PlannedTrial[Prepared]], options: ClusterOptions, observer: TrialObserver) -> bool:
    """Run `trials` in their order, as many at once as fit; of those that share samples, one of each group first.

    Their checkpoints and chunks lie where `options` say, and a later sweep over the same place goes on from there with
    what it is given. What a trial that came to its end leaves there is deleted once `observer.ended` has returned, so
    that has to store all that shall stay; samples that others share, once these have ended too.

    A trial whose process was killed goes on from its checkpoint as often as it takes, on another node if its own is
    lost; only after `IN_VAIN` attempts without one more round it is given up. One that Ray has ended `ASIDE` times in a
    row because memory was short is set aside until all others have ended, and then runs alone.

    Args:
        trials: with different keys.
        options: where, on what, how long.
        observer: hears of each trial's rounds, and of its end as soon as it is over: finished, or failed with a reason
            of one line. A trial fails by a NaN, or is given up; it can then go on later.

    Returns:
        Whether all trials were heard of; False after Ctrl-C, or when the deadline came first.

    Raises:
        InputError: No node has such resources, or a trial needs more of a GPU's memory than its part.
        StorageFullError: There was no room for the files of a trial; the sweep has been stopped.
        Exception: What `observer` raised, after the sweep has been stopped.
    """
    if not trials:
        return True
    assert len({trial.key for trial in trials}) == len(trials), "keys of trials must differ"
    options.check([trial.config for trial in trials])
    trials, packer = producers_first(trials), Packer()
    try:
        with pool_of(options, [chunk_bytes(trial.config, trial.prepared, trial.place[0]) for trial in trials]) as pool:
            jobs = SweepJobs(map(packer.job, trials))
            for key in jobs:
                start_anew(trial_folder(options.place, key))
            check_packing(jobs.values(), options.gpus_per_trial, options.per_producer.gpus, options.device_pool_limit)
            context = WorkerContext(options.place, pool, jobs, options)
            monitor = Monitor(context, observer)
            for trial in trials:
                monitor.add(trial)
            fit(monitor, context, crews={trial.key: crew_size(trial.config) for trial in trials})
            return not monitor.open
    except KeyboardInterrupt:
        return False


def producers_first(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """One trial of each pool key, then the next of each, and so on: those of a group wait less for one another."""
    seen: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for trial in trials:
        turns[trial.key] = seen[trial.place[1]]
        seen[trial.place[1]] += 1
    return sorted(trials, key=lambda trial: turns[trial.key])


def fit(listener: Listener, context: WorkerContext, crews: Mapping[str, int] | None = None) -> None:
    """Let Tune run trials: those with these `crews` of producers, by key, or without any, what `listener` proposes.

    Raises what `listener` raised.
    """
    options = context.options
    amounts = {"CPU": options.cpus_per_trial, "GPU": options.gpus_per_trial, **options.resources}
    own = {name: amount for name, amount in amounts.items() if amount}

    def resources(setup: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The bundle of the trial itself, then one for each of its producers."""
        crew = setup["crew"] if crews is None else crews[setup["key"]]
        return tune.PlacementGroupFactory([own, *[options.per_producer.bundle] * crew])

    # Its workers never look there, as nothing is reported with a checkpoint: no node but this one needs to see it.
    scratch = options.folder.resolve() / "tune"
    word = secrets.token_hex(8)
    _listeners[word], events = listener, _Events(word)

    def run_tune(keys: Sequence[str]) -> bool:
        """The trials `keys`, or those that are proposed; whether a Ctrl-C has ended it."""
        space, search = {"key": tune.grid_search(list(keys))}, dict[str, Any](scheduler=_InOrder())
        if crews is None:
            space, search = {}, {"search_alg": _Proposing(word), "scheduler": _Pruning(word), "num_samples": -1}
        # Whoever was set aside runs alone.
        at_once = 1 if crews is not None and listener.memory.wait_with(keys) else options.max_concurrent
        remove(scratch)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, context=context), resources),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once, **search),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                stop=_StopOnError(word),
                failure_config=tune.FailureConfig(max_failures=UNLIMITED),
                callbacks=[events],
            ),
        )
        # Tune would leave its own handler in charge, which hears a Ctrl-C after the sweep and does nothing.
        with handling(signal.SIGINT, before := signal.getsignal(signal.SIGINT)):
            tuner.fit()
            # In the main thread, where it hears one, it has given the signal back only when it has heard one.
            in_main = threading.current_thread() is threading.main_thread()
            return in_main and signal.getsignal(signal.SIGINT) == before

    try:
        interrupted = run_tune(list(crews or ()))
        while not interrupted and listener.error is None and (dropped := listener.take_dropped()):
            interrupted = run_tune(dropped)
    finally:
        del _listeners[word]
        remove(scratch)
    if listener.error is not None:
        raise listener.error
