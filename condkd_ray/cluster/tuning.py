"""A sweep: given trials, run by Tune on the connected cluster. Tune schedules and retries; its files are never read."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from condkd_ray.cluster.attempts import ATTEMPTS, start_anew
from condkd_ray.cluster.connect import NO_MORE, check_resources, handling
from condkd_ray.cluster.packing import check_packing
from condkd_ray.cluster.parcels import Depot
from condkd_ray.cluster.pipeline import bundles, check_room, crew_size
from condkd_ray.cluster.pool import check_limit, chunk_bytes, default_limit, make_pool
from condkd_ray.cluster.progress import Progress
from condkd_ray.cluster.spilling import tell_of_spilling
from condkd_ray.cluster.trainable import Work, chunks_folder, run, trial_folder
from condkd_ray.cluster.trial_jobs import Job, Jobs
from condkd_ray.cluster.trials import Trial, producers_first
from condkd_ray.config import to_tree
from condkd_ray.method import Metrics
from condkd_ray.pipeline import Allowance
from condkd_ray.run import CHECKPOINT_SECONDS, Outcome
from condkd_ray.storage import Location, remove

EVEN = Allowance()
"""As much for a producer as for a trial."""


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
        max_concurrent: trials at once, at most; by default as many as fit, also into a cluster that grows.
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
        check_packing(jobs.values(), gpus_per_trial, per_producer.gpus)
        progress = Progress(trials, work, on_round, on_outcome)
        bundle = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **resources}
        crews = {trial.key: crew_size(trial.config) for trial in trials}
        _fit(work, progress, folder / "tune", bundle, crews, max_concurrent)
        if progress.error is not None:
            raise progress.error
        return not progress.open
    except KeyboardInterrupt:
        return False
    finally:
        tell_of_spilling(pool, limit)
        ray.kill(pool)


def _fit(
    work: Work, progress: Progress, scratch: Path, bundle: dict[str, float], crews: dict[str, int], at_once: int | None
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
