"""One trial under Tune: what `run_trial` does, with its samples in the pool and its rounds reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from condkd_ray.cluster.pool.shared_store import SharedStore, SweepStore
from condkd_ray.cluster.pool.stopwatch import WATCH
from condkd_ray.cluster.pool.store import FilledStore, PoolStore, patiently
from condkd_ray.cluster.worker.board import Board
from condkd_ray.cluster.worker.jobs import Job, Jobs
from condkd_ray.cluster.worker.object_store import own_device, unpack
from condkd_ray.cluster.worker.producers import Crew
from condkd_ray.cluster.worker.retries import note, of_the_trial
from condkd_ray.cluster.worker.shared_rounds import SharedSource, sweep_source
from condkd_ray.core.environment import clean_process, keep_imports
from condkd_ray.core.files import no_room
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.store import MissingSamplesError
from condkd_ray.trial.config import Allowance, Prepared, TrialConfig, from_tree
from condkd_ray.trial.outcome import load_outcome, save_outcome
from condkd_ray.trial.product import product_path
from condkd_ray.trial.run import OutOfTimeError, RestsError, passed, run_trial
from condkd_ray.trial.synthesis import codec
from condkd_ray.trial.transfer import inherit

FULL = "storage_full"
"""What a trial reports, with the reason, when there is no room for its files."""
UNTESTED = "untested"
"""What a blind trial reports when its outcome is there but for the test images."""
OUT_OF_TIME = "out_of_time"
"""What a trial reports that stopped, or did not start: the deadline of the sweep had passed, or it was halted."""


RESTS = "rests"
"""What a trial reports that has come to the round after which it rests."""


@dataclass(frozen=True)
class Work:
    """All that the trials of a sweep have in common. `folder` must be seen by all nodes; `jobs` are by key."""

    folder: Location
    pool: Any
    jobs: Jobs | Board
    threads: int
    checkpoint_seconds: float
    attempts: int
    deadline: float | None
    per_producer: Allowance = Allowance()
    """Of each producer of a trial with a pipeline."""
    blind: bool = False
    """Whether no test image is looked at before the driver has heard of all else that came of a trial."""
    budgeted: bool = False
    """Whether the driver may put up a sign, `halt_path`, that all trials shall stop after their round."""

    @property
    def halted(self) -> bool:
        """Whether it has."""
        return self.budgeted and halt_path(self.folder).is_file()


def trial_folder(folder: Location, key: str) -> Location:
    """Where the trial `key` keeps its checkpoint, `state.safetensors`, and leaves its outcome."""
    return folder / "trials" / key


def halt_path(folder: Location) -> Location:
    """The sign that all trials shall stop after their round."""
    return folder / "trials" / "halt"


def chunks_folder(folder: Location) -> Location:
    """Where the pool keeps its files."""
    return folder / "chunks"


def outcome_path(folder: Location, key: str) -> Location:
    """Where the trial `key` leaves its outcome for the driver."""
    return trial_folder(folder, key) / "outcome.safetensors"


def untested_path(folder: Location, key: str) -> Location:
    """Where a blind trial leaves what the driver hears of before the test images are looked at."""
    return trial_folder(folder, key) / "untested.safetensors"


def run(setup: dict[str, str], *, work: Work) -> None:
    """Run the trial `setup["key"]` to its outcome, from its checkpoint where there is one.

    A trial that cannot succeed has a failed outcome. After any other exception Tune tries again, but `work.attempts`
    times in all; one that is then given up has no outcome. Full storage is reported: it concerns all trials.
    """
    key, path, job = setup["key"], outcome_path(work.folder, setup["key"]), work.jobs[setup["key"]]
    config = from_tree(job.tree, job.label)

    def report(metrics: Mapping[str, Any]) -> None:
        from ray import tune

        with WATCH.running():
            tune.report({**metrics, "progress": metrics.get("round", 0) / config.total_rounds, "key": key})

    if path.is_file() and (outcome := load_outcome(path)).status == "finished":
        # An earlier driver died before it had made a record of it.
        for metrics in outcome.history:
            report(metrics)
        return
    if passed(work.deadline) or work.halted:
        return report({OUT_OF_TIME: 1})
    # Nothing of a trial is there yet where this is the process's first.
    keep_imports()
    clean_process(work.threads)
    last = _last_report(config, work, key, report)
    if last is not None:
        report(last)


def _last_report(
    config: TrialConfig, work: Work, key: str, report: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any] | None:
    """Run the trial as far as it goes; what is to be reported at its end beside its rounds, if anything."""
    try:
        with WATCH.trial():
            outcome = _attempt(config, work, key, report)
            times = {"time/cluster_seconds": WATCH.seconds} if outcome.metrics else {}
            save_outcome(replace(outcome, metrics=outcome.metrics | times), outcome_path(work.folder, key))
    except OutOfTimeError:
        return {OUT_OF_TIME: 1}
    except RestsError:
        return {RESTS: 1}
    except Exception as error:
        full = no_room(error)
        if full is None and not (of_the_trial(error) and note(trial_folder(work.folder, key), error) >= work.attempts):
            raise
        return {} if full is None else {FULL: full}
    # Tune prints a line on trials without any report.
    return None if outcome.history else {}


def _attempt(config: TrialConfig, work: Work, key: str, report: Callable[[Mapping[str, Any]], None]) -> Outcome:
    checkpoint = trial_folder(work.folder, key) / "state.safetensors"
    job = work.jobs[key]
    prepared = unpack(config, job.parcel, own_device())
    if job.heir_of and not checkpoint.is_file():
        _inherit(config, prepared, work, job, checkpoint)
    rest = {
        "checkpoint": checkpoint,
        "product": product_path(trial_folder(work.folder, key)),
        "on_round": report,
        "checkpoint_seconds": work.checkpoint_seconds,
        "deadline": work.deadline,
        "halted": lambda: work.halted,
        "rests": job.rests,
        "before_test": partial(_show, work, key, report) if work.blind else None,
    }
    try:
        return _run(config, prepared, work, key, rest)
    except MissingSamplesError:
        if job.heir_of:
            raise
        # Somebody has deleted chunks. From its start the trial comes to the same numbers, only later.
        checkpoint.unlink()
        return _run(config, prepared, work, key, rest)
    except InputError as error:
        return Outcome(status="failed", reason=str(error), metrics={}, history=[], predictions=[], images=None)


def _inherit(config: TrialConfig, prepared: Prepared, work: Work, job: Job, checkpoint: Location) -> None:
    """Samples first: with its checkpoint there, a trial has all."""
    import ray

    patiently(lambda: ray.get(work.pool.inherit.remote(job.pool_key, job.heir_of)))
    inherit(config, prepared, trial_folder(work.folder, job.heir_of) / checkpoint.name, checkpoint)


def _show(work: Work, key: str, report: Callable[[Mapping[str, Any]], None], outcome: Outcome) -> None:
    """Blocks until the driver has heard of it."""
    save_outcome(outcome, untested_path(work.folder, key))
    report({"round": len(outcome.history), UNTESTED: 1})


def _run(config: TrialConfig, prepared: Prepared, work: Work, key: str, rest: dict[str, Any]) -> Outcome:
    teacher, scope, pool_key = prepared.teacher, work.jobs[key].scope, work.jobs[key].pool_key
    place = (codec(config, teacher), teacher.num_classes, work.pool, pool_key)
    if config.pipeline is not None:
        store = FilledStore(*place, teacher.device)
        with Crew(work.jobs[key].parcel, work.pool, pool_key, work.per_producer) as source:
            return run_trial(config, prepared, store, source=source, **rest)
    if scope == "trial":
        return run_trial(config, prepared, PoolStore(*place, teacher.device), **rest)
    if scope == "sweep":
        store = SweepStore(*place, key, teacher.device)
        return run_trial(config, prepared, store, source=sweep_source, **rest)
    path = chunks_folder(work.folder) / pool_key / "production.safetensors"
    store = SharedStore(*place, key, teacher.device)
    with SharedSource(work.pool, pool_key, key, path, work.checkpoint_seconds) as source:
        return run_trial(config, prepared, store, source=source, produces=False, **rest)
