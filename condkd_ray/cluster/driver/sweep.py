"""A sweep: given trials, run by Tune on the connected cluster. Tune schedules and retries; its files are never read."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from condkd_ray.cluster.connection.signals import handling
from condkd_ray.cluster.driver.gpu_memory import check_packing
from condkd_ray.cluster.driver.monitor import Progress
from condkd_ray.cluster.driver.options import Terms
from condkd_ray.cluster.pool.actor import chunk_bytes
from condkd_ray.cluster.worker.jobs import Job, Jobs
from condkd_ray.cluster.worker.object_store import Depot
from condkd_ray.cluster.worker.producers import bundles, crew_size
from condkd_ray.cluster.worker.retries import start_anew
from condkd_ray.cluster.worker.trainable import Work, run, trial_folder
from condkd_ray.cluster.worker.trials import Trial, producers_first
from condkd_ray.core.config import to_tree
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import remove


def sweep(
    trials: Sequence[Trial],
    terms: Terms,
    *,
    on_round: Callable[[Trial, Metrics], None] = lambda trial, metrics: None,
    on_outcome: Callable[[Trial, Outcome], None],
) -> bool:
    """Run `trials` in their order, as many at once as fit; of those that share samples, one of each group first.

    Their checkpoints and chunks lie where `terms` say, and a later sweep over the same place goes on from there with
    what it is given. What a trial that came to its end leaves there is deleted once `on_outcome` has returned, so that
    has to store all that shall stay; samples that others share, once these have ended too.

    A trial whose process was killed goes on from its checkpoint as often as it takes, on another node if its own is
    lost; only after `events.IN_VAIN` attempts without one more round it is given up.

    Args:
        trials: with different keys.
        terms: where, on what, how long.
        on_round: hears the metrics of each round once, in order.
        on_outcome: hears of each trial once, as soon as it is over: finished, or failed with a reason of one line. A
            trial fails by a NaN, or is given up; it can then go on later.

    Returns:
        Whether all trials were heard of; False after Ctrl-C, or when the deadline came first.

    Raises:
        InputError: No node has such resources, or a trial needs more of a GPU's memory than its part.
        StorageFullError: There was no room for the files of a trial; the sweep has been stopped.
        Exception: What `on_round` or `on_outcome` raised, after the sweep has been stopped.
    """
    if not trials:
        return True
    assert len({trial.key for trial in trials}) == len(trials), "keys of trials must differ"
    terms.check([trial.config for trial in trials])
    trials, depot = producers_first(trials), Depot()
    try:
        with terms.pool([chunk_bytes(trial.config, trial.prepared, trial.place[0]) for trial in trials]) as pool:
            jobs = Jobs({t.key: Job(t.label, to_tree(t.config), depot.pack(t.prepared), *t.place) for t in trials})
            for key in jobs:
                start_anew(trial_folder(terms.place, key))
            check_packing(jobs.values(), terms.gpus_per_trial, terms.per_producer.gpus)
            progress = Progress(trials, terms.work(pool, jobs), on_round, on_outcome)
            crews = {trial.key: crew_size(trial.config) for trial in trials}
            fit(progress, terms, crew_of=partial(_looked_up, crews), keys=list(jobs))
            return not progress.open
    except KeyboardInterrupt:
        return False


def _looked_up(crews: dict[str, int], setup: dict[str, Any]) -> int:
    return crews[setup["key"]]


def fit(
    progress: Progress,
    terms: Terms,
    *,
    crew_of: Callable[[dict[str, Any]], int],
    keys: Sequence[str] | None = None,
    searches: bool = False,
) -> None:
    """Let Tune run what `progress` follows: the trials `keys`, or what it proposes. Raises what `progress` raised."""
    from ray import tune

    from condkd_ray.cluster.driver.tune_hooks import UNLIMITED, listening

    # Its workers never look there, as nothing is reported with a checkpoint: no node but this one needs to see it.
    scratch = terms.folder.resolve() / "tune"
    remove(scratch)
    resources = partial(bundles, learner=terms.bundle, per_producer=terms.per_producer, crew_of=crew_of)
    work: Work = progress.work
    with listening(progress) as (events, stopper):
        proposing: dict[str, Any] = {}
        if searches:
            from condkd_ray.cluster.driver.searcher import Proposing, Pruning

            proposing = {"search_alg": Proposing(events.word), "scheduler": Pruning(events.word), "num_samples": -1}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run, work=work), resources),
            param_space={} if searches else {"key": tune.grid_search(list(keys or []))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=terms.max_concurrent, **proposing),
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
    if progress.error is not None:
        raise progress.error
