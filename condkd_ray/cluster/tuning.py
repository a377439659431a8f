"""A sweep: given trials, run by Tune on the connected cluster. Tune schedules and retries; its files are never read."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from condkd_ray.cluster.attempts import ATTEMPTS, last_reason, start_anew
from condkd_ray.cluster.connect import NO_MORE, check_resources, handling, slots, spilled_by_ray
from condkd_ray.cluster.packing import check_packing
from condkd_ray.cluster.parcels import Depot
from condkd_ray.cluster.pipeline import bundles, check_room, crew_size
from condkd_ray.cluster.pool import check_limit, chunk_bytes, default_limit, make_pool
from condkd_ray.cluster.trainable import FULL, OUT_OF_TIME, Work, chunks_folder, outcome_path, run, trial_folder
from condkd_ray.cluster.trial_jobs import Job, Jobs
from condkd_ray.config import to_tree
from condkd_ray.disk import StorageFullError
from condkd_ray.identity import Scope, pool_key
from condkd_ray.method import Metrics
from condkd_ray.pipeline import Allowance
from condkd_ray.run import CHECKPOINT_SECONDS, Outcome, load_outcome, passed
from condkd_ray.shell import say
from condkd_ray.storage import Location, remove
from condkd_ray.trial import Prepared, TrialConfig

STATS_SECONDS = 10.0
"""How long the pool is waited for when a sweep is over; it may be on a node that is lost."""
EVEN = Allowance()
"""As much for a producer as for a trial."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep. `key` names its files, and is its own; `label` is for people."""

    key: str
    label: str
    config: TrialConfig
    prepared: Prepared
    scope: Scope = "trial"
    """Which other trials of the sweep it shares its samples with."""

    @property
    def place(self) -> tuple[Scope, str]:
        """The scope it really has, and the pool's key of its samples."""
        return pool_key(self.scope, self.key, self.config, self.prepared)


def sweep(
    trials: Sequence[Trial],
    *,
    folder: Path,
    storage: Location | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    resources: Mapping[str, float] = NO_MORE,
    max_concurrent: int | None = None,
    deadline: float | None = None,
    on_round: Callable[[Trial, Metrics], None] = lambda trial, metrics: None,
    on_outcome: Callable[[Trial, Outcome], None],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    pool_limit: int | None = None,
    attempts: int = ATTEMPTS,
    per_producer: Allowance = EVEN,
) -> bool:
    """Run `trials` in their order, as many at once as fit; of those that share samples, one of each group first.

    Their checkpoints and chunks lie in `storage`, and a later sweep over the same one goes on from there with what it
    is given. What a trial that came to its end leaves there is deleted once `on_outcome` has returned, so that has
    to store all that shall stay; samples that others share, once these have ended too.

    A trial whose process was killed goes on from its checkpoint as often as it takes, on another node if its own is
    lost; only after `events.IN_VAIN` attempts without one more round it is given up.

    Args:
        trials: with different keys.
        folder: of this process alone, for what Tune writes meanwhile.
        storage: what all nodes see, see `condkd_ray.cluster.reach`; `folder` if not given.
        cpus_per_trial: CPUs held by a trial; also its number of threads, rounded down.
        gpus_per_trial: GPUs, or a part of one.
        resources: amounts of custom resources that a trial needs too.
        max_concurrent: trials at once, at most; as many as fit by default.
        deadline: a `time.time()` from which no trial starts; each that runs stops after its round, with a checkpoint.
        on_round: hears the metrics of each round once, in order.
        on_outcome: hears of each trial once, as soon as it is over: finished, or failed with a reason of one line. A
            trial fails by a NaN, or is given up; it can then go on later.
        checkpoint_seconds: between two checkpoints of a trial, at least.
        pool_limit: bytes of samples in shared memory, `default_limit` if not given; the rest is read from disk.
        attempts: exceptions after which a trial is given up.
        per_producer: what each producer of a trial with a pipeline gets, beside what the trial itself does.

    Returns:
        Whether all trials were heard of; False after Ctrl-C, or when the deadline came first.

    Raises:
        InputError: No node has such resources, or a trial needs more of a GPU's memory than its part.
        StorageFullError: There was no room for the files of a trial; the sweep has been stopped.
        Exception: What `on_round` or `on_outcome` raised, after the sweep has been stopped.
    """
    import ray

    if not trials:
        return True
    assert len({trial.key for trial in trials}) == len(trials), "keys of trials must differ"
    check_resources(cpus_per_trial, gpus_per_trial, resources)
    check_room(cpus_per_trial, gpus_per_trial, per_producer, [trial.config for trial in trials])
    folder = folder.resolve()
    storage = storage.absolute() if isinstance(storage, Path) else storage or folder
    limit = default_limit() if pool_limit is None else pool_limit
    check_limit(limit, [chunk_bytes(trial.config, trial.prepared) for trial in trials])
    pool, depot = make_pool(chunks_folder(storage), limit), Depot()
    trials = producers_first(trials)
    try:
        jobs = Jobs({t.key: Job(t.label, to_tree(t.config), depot.pack(t.prepared), *t.place) for t in trials})
        threads = max(1, int(cpus_per_trial))
        work = Work(storage, pool, jobs, threads, checkpoint_seconds, attempts, deadline, per_producer)
        for key in jobs:
            start_anew(trial_folder(storage, key))
        check_packing(jobs.values(), gpus_per_trial)
        progress = _Progress(trials, work, on_round, on_outcome)
        bundle = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **resources}
        fitting = max(1, slots(cpus_per_trial, gpus_per_trial, resources))
        crews = {trial.key: crew_size(trial.config) for trial in trials}
        _fit(work, progress, folder / "tune", bundle, crews, min(fitting, max_concurrent or fitting))
        if progress.error is not None:
            raise progress.error
        return not progress.open
    except KeyboardInterrupt:
        return False
    finally:
        _tell_of_spilling(pool, limit)
        ray.kill(pool)


def _tell_of_spilling(pool: Any, limit: int) -> None:
    """Samples that had to be read from disk slow a sweep down, which nobody could tell from outside."""
    import ray

    ready, _ = ray.wait([pool.stats.remote()], timeout=STATS_SECONDS)
    shed = ray.get(ready[0])["shed"] if ready else 0
    if shed:
        say(f"{shed / 1e6:.0f} MB of samples were beyond the pool's limit of {limit / 1e6:.0f} MB: read from disk")
    if spilled := spilled_by_ray():
        say(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: a lower --pool-limit leaves it more room")


def producers_first(trials: Sequence[Trial]) -> list[Trial]:
    """One trial of each pool key, then the next of each, and so on: those of a group wait less for one another."""
    seen: Counter[str] = Counter()
    turns = []
    for trial in trials:
        turns.append(seen[trial.place[1]])
        seen[trial.place[1]] += 1
    return [trial for _, trial in sorted(zip(turns, trials, strict=True), key=lambda pair: pair[0])]


def clear(storage: Location, done: Sequence[Trial], others: Sequence[Trial]) -> None:
    """Delete what recorded trials have left in `storage`: a driver may have died just before it did.

    Samples that one of `others` shares stay.
    """
    needed = {trial.place[1] for trial in others}
    for trial in done:
        remove(trial_folder(storage, trial.key))
        if trial.place[1] not in needed:
            remove(chunks_folder(storage) / trial.place[1])


def empty(storage: Location) -> None:
    """Delete all that trials have left in `storage`, so that none goes on from there."""
    for name in ("trials", "chunks"):
        remove(storage / name)


class _Progress:
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


def _fit(
    work: Work, progress: _Progress, scratch: Path, bundle: dict[str, float], crews: dict[str, int], at_once: int
) -> None:
    from ray import tune

    from condkd_ray.cluster.events import UNLIMITED, listening

    # Its workers never look there, as nothing is reported with a checkpoint: no node but this one needs to see it.
    remove(scratch)
    learner = {name: amount for name, amount in bundle.items() if amount}
    resources = partial(bundles, learner=learner, per_producer=work.per_producer, crews=crews)
    with listening(progress) as (events, stopper):
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, work=work), resources),
            param_space={"key": tune.grid_search(list(work.jobs))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=UNLIMITED),
                callbacks=[events],
            ),
        )
        try:
            # Tune would leave its own handler in charge, which hears a Ctrl-C after the sweep and does nothing.
            with handling(signal.SIGINT, signal.getsignal(signal.SIGINT)):
                tuner.fit()
        finally:
            remove(scratch)
