"""One trial under Tune: runs `run_trial` with its samples in the pool, and reports its rounds."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from condkd_ray.cluster.actors import WATCH, call_actor
from condkd_ray.cluster.files import chunks_folder, halt_path, note, trial_file, trial_folder
from condkd_ray.cluster.jobs import Job, SearchJobs, SweepJobs, own_device, unpack
from condkd_ray.cluster.lost import full, in_words, is_lost
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.chunks import Caller
from condkd_ray.cluster.pool.sources import Producers, SharedSource, sweep_source
from condkd_ray.cluster.pool.stores import FilledStore, PoolStore, SharedStore, SweepStore, own_node
from condkd_ray.cluster.storage_check import why_unusable
from condkd_ray.core.checkpoint import DamagedError
from condkd_ray.core.chunk_files import MissingSamplesError
from condkd_ray.core.environment import clean_process, is_out_of_memory, keep_imports, private_bytes
from condkd_ray.core.method import ClusterError, InputError
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import Location, no_room
from condkd_ray.methods.memory.device_rows import default_limit
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import broken, left_outcome, product_path, save_outcome
from condkd_ray.trial.run import OutOfTimeError, PausedError, inherit, passed, run_trial
from condkd_ray.trial.synthesis import codec

FULL = "storage_full"
"""Key of the report of a trial for whose files there is no room; its value is the reason."""
UNUSABLE = "storage_unusable"
"""Key of the report of a trial whose node cannot use the storage; its value is the reason."""
UNTESTED = "untested"
"""Key of the report of a blind trial whose outcome is complete except for its test."""
OUT_OF_TIME = "out_of_time"
"""Key of the report of a trial that stopped, or did not start, because of the deadline or because it was halted."""
PAUSED = "rests"
"""Key of the report of a trial that pauses after its round `lineage.pause_after`."""
MEMORY = "private_memory"
"""Key, in each report, of the bytes of memory private to the trial's process."""
METRICS = "metrics"
"""Key of the metrics of a report, as pairs of name and value. Of each number in a report Tune keeps statistics, 2 kB a
trial, and a few hundred operations; it does not look into a tuple."""
UNWIND_SECONDS = 600
"""Seconds that a trial stopped by Tune has to save its state before its process starts the next trial (our choice)."""
_recognised = set[str]()
"""Markers of the storages that this process can use."""
Report = Callable[[Mapping[str, Any]], None]
"""Reports the metrics of a round, or one of the keys above, to the driver."""


@dataclass(frozen=True)
class WorkerContext:
    """Data that all trials of a sweep or a search have in common; sent to every worker."""

    folder: Location
    """Folder of checkpoints and chunks, which all nodes can read and write."""
    pool: Any
    """Handle of the actor `pool.SyntheticPool`."""
    jobs: SweepJobs | SearchJobs
    options: ClusterOptions
    blind: bool = False
    """True if a trial may read test images only after the driver has received all its other results."""
    budgeted: bool = False
    """True if the driver may write the file `halt_path`, which stops all trials after their round."""
    marker: str = ""
    """Name of a file in `folder` by which a node recognises the storage; empty for no check."""

    @property
    def halted(self) -> bool:
        """True if the driver has written the file `halt_path`."""
        return self.budgeted and halt_path(self.folder).is_file()


def run(setup: dict[str, Any], *, context: WorkerContext) -> None:
    """Run the trial `setup["key"]` to its outcome, from its checkpoint if there is one.

    A trial that cannot succeed has a failed outcome. That includes one whose share of a GPU has too little memory:
    other trials on it hold the rest, so a second try would find no more. After any other exception Tune tries again, up
    to `ClusterOptions.attempts` exceptions; a trial given up then has no outcome. Full storage is reported to the
    driver, because it concerns all trials; so is a node that cannot use the storage, because a trial that is tried
    again would get to this free node once more.
    """
    # Tune (2.60) reads this here. After its default of 2 s it drops the next trial on a busy machine without a message.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(UNWIND_SECONDS)
    job = context.jobs[setup["key"]]
    path = trial_file(context.folder, job.key, "outcome")

    def report(metrics: Mapping[str, Any]) -> None:
        with WATCH.running():
            rest = {"round": metrics["round"]} if "round" in metrics else {}
            tune.report(rest | {METRICS: tuple(metrics.items()), "key": job.key, MEMORY: private_bytes()})

    if context.marker not in _recognised:
        if context.marker and (wrong := why_unusable(context.folder, context.marker)):
            return report({UNUSABLE: wrong})
        _recognised.add(context.marker)
    if (outcome := left_outcome(path)) is not None and outcome.status == "finished":
        # An earlier driver died before it wrote the trial's record.
        for metrics in outcome.history:
            report(metrics)
        return
    if passed(context.options.deadline) or context.halted:
        return report({OUT_OF_TIME: 1})
    # If this trial is the first of its process, nothing of a trial is loaded yet.
    keep_imports()
    clean_process(max(1, int(context.options.cpus_per_trial)), context.options.gpus_per_trial)
    last = _last_report(job, context, report)
    if last is not None:
        report(last)


def _last_report(job: Job, context: WorkerContext, report: Report) -> dict[str, Any] | None:
    """Run the trial as far as possible; return the report to send after those of its rounds, None if there is none."""
    folder = trial_folder(context.folder, job.key)
    try:
        with WATCH.trial():
            outcome = _outcome(job, context, report)
            times = {"time/cluster_seconds": WATCH.seconds} if outcome.metrics else {}
            outcome = replace(outcome, metrics=outcome.metrics | times)
            save_outcome(outcome, trial_file(context.folder, job.key, "outcome"))
    except OutOfTimeError:
        return {OUT_OF_TIME: 1}
    except PausedError:
        return {PAUSED: 1}
    except Exception as error:
        if (reason := no_room(error) or full(error)) is not None:
            return {FULL: reason}
        if is_lost(error):
            raise ClusterError(in_words(error)) from error
        if note(folder, error) < context.options.attempts:
            raise
        return {}
    # Without any report, Tune would print a line about the trial.
    return None if outcome.history else {}


def _outcome(job: Job, context: WorkerContext, report: Report) -> Outcome:
    """Return the trial's outcome; if the GPU cannot even hold the trial's inputs, a failed one."""
    try:
        return _attempt(job, context, report)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return broken(error, torch.device(own_device()))


def _attempt(job: Job, context: WorkerContext, report: Report) -> Outcome:
    checkpoint = trial_file(context.folder, job.key, "state")
    prepared = unpack(job.config, job.prepared, own_device())
    if (parent := job.lineage.parent) and not checkpoint.is_file():
        # Copy the samples first: a trial whose checkpoint exists is assumed to have all of its samples.
        call_actor(context.pool.inherit, job.pool_key, parent, Caller(own_node()))
        inherit(job.config, prepared, trial_file(context.folder, parent, "state"), checkpoint)

    def show(outcome: Outcome) -> None:
        """Report the outcome before the test; blocks until the driver has handled it."""
        save_outcome(outcome, trial_file(context.folder, job.key, "untested"))
        report({"round": len(outcome.history), UNTESTED: 1})

    rest = {
        "checkpoint": checkpoint,
        "product": product_path(trial_folder(context.folder, job.key)),
        "on_round": report,
        "checkpoint_seconds": context.options.checkpoint_seconds,
        "deadline": context.options.deadline,
        "halted": lambda: context.halted,
        "pause_after": job.lineage.pause_after,
        "before_test": show if context.blind else None,
    }
    try:
        return _run(job, prepared, context, rest)
    except (MissingSamplesError, DamagedError):
        checkpoint.unlink(missing_ok=True)
        if parent:
            # The next attempt copies its parent's state once more.
            raise
        # Chunks were deleted, or a chunk or the checkpoint is damaged. If it starts over, the trial reaches the same
        # numbers, only later.
        return _run(job, prepared, context, rest)
    except InputError as error:
        return Outcome(status="failed", reason=str(error))


def _run(job: Job, prepared: Prepared, context: WorkerContext, rest: dict[str, Any]) -> Outcome:
    config, teacher, scope, pool_key = job.config, prepared.teacher, job.scope, job.pool_key
    place = (codec(config, teacher), teacher.num_classes, context.pool, pool_key, teacher.device)
    limit = _device_limit(teacher.device, context.options)
    if config.pipeline is not None:
        store = FilledStore(*place, device_limit=limit)
        with Producers(job.prepared, context.pool, pool_key, context.options.per_producer) as source:
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
    """Return the bytes of samples that a trial may hold on its GPU; on a CPU the given limit, which a store refuses."""
    if options.device_pool_limit is not None or device.type == "cpu":
        return options.device_pool_limit
    return default_limit(device, options.gpus_per_trial)
