"""One trial under Tune: what `run_trial` does, with its samples in the pool and its rounds reported."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from condkd_ray.cluster.files import chunks_folder, halt_path, note, trial_file, trial_folder
from condkd_ray.cluster.jobs import Job, SearchJobs, SweepJobs, own_device, unpack
from condkd_ray.cluster.lost import full, in_words, is_lost
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sources import Crew, SharedSource, sweep_source
from condkd_ray.cluster.stores import WATCH, FilledStore, PoolStore, SharedStore, SweepStore, ask
from condkd_ray.core.checkpoint import DamagedError
from condkd_ray.core.environment import clean_process, is_out_of_memory, keep_imports, private_bytes
from condkd_ray.core.method import ClusterError, InputError
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import Location, no_room
from condkd_ray.methods.memory.device_rows import default_limit
from condkd_ray.methods.memory.store import MissingSamplesError
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import broken, left_outcome, product_path, save_outcome
from condkd_ray.trial.run import OutOfTimeError, RestsError, inherit, passed, run_trial
from condkd_ray.trial.synthesis import codec

FULL = "storage_full"
"""What a trial reports, with the reason, when there is no room for its files."""
UNTESTED = "untested"
"""What a blind trial reports when its outcome is there but for the test images."""
OUT_OF_TIME = "out_of_time"
"""What a trial reports that stopped, or did not start: the deadline of the sweep had passed, or it was halted."""
RESTS = "rests"
"""What a trial reports that has come to the round after which it rests."""
MEMORY = "private_memory"
"""What each report has: bytes that the process of the trial has for itself."""
UNWIND_SECONDS = 600
"""In which a trial that Tune has stopped may write down its state before its process takes the next (our choice)."""
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class WorkerContext:
    """All that the trials of a sweep or a search have in common, sent to every worker."""

    folder: Location
    """Seen by all nodes."""
    pool: Any
    jobs: SweepJobs | SearchJobs
    options: ClusterOptions
    blind: bool = False
    """Whether no test image is looked at before the driver has heard of all else that came of a trial."""
    budgeted: bool = False
    """Whether the driver may put up a sign, `halt_path`, that all trials shall stop after their round."""

    @property
    def halted(self) -> bool:
        """Whether it has."""
        return self.budgeted and halt_path(self.folder).is_file()


def run(setup: dict[str, Any], *, context: WorkerContext) -> None:
    """Run the trial `setup["key"]` to its outcome, from its checkpoint where there is one.

    A trial that cannot succeed has a failed outcome, also one whose part of a GPU has too little memory: whoever is
    beside it has a part too, so that a second try would find no more. After any other exception Tune tries again, but
    `ClusterOptions.attempts` times in all; one that is then given up has no outcome. Full storage is reported: it
    concerns all trials.
    """
    # Tune (2.60) reads it here, in two seconds, its default, drops the next trial on a busy machine, and tells nobody.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(UNWIND_SECONDS)
    job = context.jobs[setup["key"]]
    path = trial_file(context.folder, job.key, "outcome")

    def report(metrics: Mapping[str, Any]) -> None:
        with WATCH.running():
            tune.report({**metrics, "key": job.key, MEMORY: private_bytes()})

    if (outcome := left_outcome(path)) is not None and outcome.status == "finished":
        # An earlier driver died before it had made a record of it.
        for metrics in outcome.history:
            report(metrics)
        return
    if passed(context.options.deadline) or context.halted:
        return report({OUT_OF_TIME: 1})
    # Nothing of a trial is there yet where this is the process's first.
    keep_imports()
    clean_process(max(1, int(context.options.cpus_per_trial)), context.options.gpus_per_trial)
    last = _last_report(job, context, report)
    if last is not None:
        report(last)


def _last_report(job: Job, context: WorkerContext, report: Report) -> dict[str, Any] | None:
    """Run the trial as far as it goes; what is to be reported at its end beside its rounds, if anything."""
    folder = trial_folder(context.folder, job.key)
    try:
        with WATCH.trial():
            outcome = _outcome(job, context, report)
            times = {"time/cluster_seconds": WATCH.seconds} if outcome.metrics else {}
            outcome = replace(outcome, metrics=outcome.metrics | times)
            save_outcome(outcome, trial_file(context.folder, job.key, "outcome"))
    except OutOfTimeError:
        return {OUT_OF_TIME: 1}
    except RestsError:
        return {RESTS: 1}
    except Exception as error:
        if (reason := no_room(error) or full(error)) is not None:
            return {FULL: reason}
        if is_lost(error):
            raise ClusterError(in_words(error)) from error
        if note(folder, error) < context.options.attempts:
            raise
        return {}
    # Tune prints a line on trials without any report.
    return None if outcome.history else {}


def _outcome(job: Job, context: WorkerContext, report: Report) -> Outcome:
    """What comes of the trial; failed also where the GPU cannot even hold what it is prepared with."""
    try:
        return _attempt(job, context, report)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return broken(error, torch.device(own_device()))


def _attempt(job: Job, context: WorkerContext, report: Report) -> Outcome:
    checkpoint = trial_file(context.folder, job.key, "state")
    prepared = unpack(job.config, job.prepared, own_device())
    if (parent := job.lineage.heir_of) and not checkpoint.is_file():
        # Samples first: with its checkpoint there, a trial has all.
        ask(context.pool.inherit, job.place[1], parent)
        inherit(job.config, prepared, trial_file(context.folder, parent, "state"), checkpoint)

    def show(outcome: Outcome) -> None:
        """Blocks until the driver has heard of it."""
        save_outcome(outcome, trial_file(context.folder, job.key, "untested"))
        report({"round": len(outcome.history), UNTESTED: 1})

    rest = {
        "checkpoint": checkpoint,
        "product": product_path(trial_folder(context.folder, job.key)),
        "on_round": report,
        "checkpoint_seconds": context.options.checkpoint_seconds,
        "deadline": context.options.deadline,
        "halted": lambda: context.halted,
        "rests": job.lineage.rests,
        "before_test": show if context.blind else None,
    }
    try:
        return _run(job, prepared, context, rest)
    except (MissingSamplesError, DamagedError):
        checkpoint.unlink(missing_ok=True)
        if parent:
            # Tried again, it takes over its parent's state once more.
            raise
        # Somebody has deleted chunks, or they or the checkpoint are damaged. From its start the trial comes to the
        # same numbers, only later.
        return _run(job, prepared, context, rest)
    except InputError as error:
        return Outcome(status="failed", reason=str(error))


def _run(job: Job, prepared: Prepared, context: WorkerContext, rest: dict[str, Any]) -> Outcome:
    config, teacher, (scope, pool_key) = job.config, prepared.teacher, job.place
    place = (codec(config, teacher), teacher.num_classes, context.pool, pool_key, teacher.device)
    limit = _device_limit(teacher.device, context.options)
    if config.pipeline is not None:
        store = FilledStore(*place, device_limit=limit)
        with Crew(job.prepared, context.pool, pool_key, context.options.per_producer) as source:
            return run_trial(config, prepared, store, source=source, **rest)
    if scope == "trial":
        return run_trial(config, prepared, PoolStore(*place, device_limit=limit), **rest)
    if scope == "sweep":
        store = SweepStore(*place, reader=job.key, device_limit=limit)
        return run_trial(config, prepared, store, source=sweep_source, **rest)
    path, saved = chunks_folder(context.folder) / pool_key / "production.safetensors", context.options
    store = SharedStore(*place, reader=job.key, device_limit=limit)
    with SharedSource(context.pool, pool_key, job.key, path, saved.checkpoint_seconds) as source:
        return run_trial(config, prepared, store, source=source, produces=False, **rest)


def _device_limit(device: torch.device, options: ClusterOptions) -> int | None:
    """Bytes of samples that a trial may have on its GPU; on a CPU what was asked for, which a store then refuses."""
    if options.device_pool_limit is not None or device.type == "cpu":
        return options.device_pool_limit
    return default_limit(device, options.gpus_per_trial)
