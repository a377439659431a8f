"""A sweep: given trials, run by Tune on the connected cluster. Tune schedules and retries; its files are never read."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from condkd_ray.cluster.connection.resources import crew_size
from condkd_ray.cluster.connection.signals import handling
from condkd_ray.cluster.driver.gpu_memory import check_packing
from condkd_ray.cluster.driver.monitor import Monitor, TrialObserver
from condkd_ray.cluster.driver.options import ClusterOptions
from condkd_ray.cluster.pool.actor import chunk_bytes
from condkd_ray.cluster.worker.jobs import SweepJobs
from condkd_ray.cluster.worker.object_store import Packer
from condkd_ray.cluster.worker.paths import trial_folder
from condkd_ray.cluster.worker.producers import bundles
from condkd_ray.cluster.worker.retries import start_anew
from condkd_ray.cluster.worker.trainable import WorkerContext, run
from condkd_ray.core.storage import remove
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.plan import PlannedTrial

if TYPE_CHECKING:
    from condkd_ray.cluster.driver.tune_hooks import Listener


def sweep(trials: Sequence[PlannedTrial[Prepared]], options: ClusterOptions, observer: TrialObserver) -> bool:
    """Run `trials` in their order, as many at once as fit; of those that share samples, one of each group first.

    Their checkpoints and chunks lie where `options` say, and a later sweep over the same place goes on from there with
    what it is given. What a trial that came to its end leaves there is deleted once `observer.ended` has returned, so
    that has to store all that shall stay; samples that others share, once these have ended too.

    A trial whose process was killed goes on from its checkpoint as often as it takes, on another node if its own is
    lost; only after `tune_hooks.IN_VAIN` attempts without one more round it is given up.

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
        with options.pool([chunk_bytes(trial.config, trial.prepared, trial.place[0]) for trial in trials]) as pool:
            jobs = SweepJobs(map(packer.job, trials))
            for key in jobs:
                start_anew(trial_folder(options.place, key))
            check_packing(jobs.values(), options.gpus_per_trial, options.per_producer.gpus)
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
    turns = []
    for trial in trials:
        turns.append(seen[trial.place[1]])
        seen[trial.place[1]] += 1
    return [trial for _, trial in sorted(zip(turns, trials, strict=True), key=lambda pair: pair[0])]


def fit(listener: Listener, context: WorkerContext, crews: Mapping[str, int] | None = None) -> None:
    """Let Tune run trials: those with these `crews` of producers, by key, or without any, what `listener` proposes.

    Raises what `listener` raised.
    """
    from ray import tune

    from condkd_ray.cluster.driver.tune_hooks import UNLIMITED, Proposing, Pruning, listening

    options = context.options
    # Its workers never look there, as nothing is reported with a checkpoint: no node but this one needs to see it.
    scratch = options.folder.resolve() / "tune"
    remove(scratch)
    resources = partial(bundles, learner=options.bundle, per_producer=options.per_producer, crews=crews or {})
    with listening(listener) as (events, stopper):
        proposing: dict[str, Any] = {}
        if crews is None:
            proposing = {"search_alg": Proposing(events.word), "scheduler": Pruning(events.word), "num_samples": -1}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, context=context), resources),
            param_space={} if crews is None else {"key": tune.grid_search(list(crews))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=options.max_concurrent, **proposing),
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
    if listener.error is not None:
        raise listener.error
