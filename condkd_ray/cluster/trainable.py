"""One trial under Tune: what `run_trial` does, with its samples in the pool and its rounds reported."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condkd_ray.cluster.attempts import note
from condkd_ray.cluster.parcels import Parcel, unpack
from condkd_ray.cluster.pool import PoolStore
from condkd_ray.config import Tree, from_tree
from condkd_ray.disk import no_room
from condkd_ray.memory.store import MissingSamplesError
from condkd_ray.method import InputError, Metrics
from condkd_ray.product import product_path
from condkd_ray.run import Outcome, load_outcome, run_trial, save_outcome
from condkd_ray.trial import TrialConfig, codec

FULL = "storage_full"
"""What a trial reports, with the reason, when there is no room for its files."""


@dataclass(frozen=True)
class Job:
    """A trial to be run: its config as a tree, and what it was prepared with."""

    label: str
    tree: Tree
    parcel: Parcel


@dataclass(frozen=True)
class Work:
    """All that the trials of a sweep have in common. `folder` must be seen by all nodes; `jobs` are by key."""

    folder: Path
    pool: Any
    jobs: dict[str, Job]
    threads: int
    checkpoint_seconds: float
    attempts: int


def trial_folder(folder: Path, key: str) -> Path:
    """Where the trial `key` keeps its checkpoint, `state.safetensors`, and leaves its outcome."""
    return folder / "trials" / key


def outcome_path(folder: Path, key: str) -> Path:
    """Where the trial `key` leaves its outcome for the driver."""
    return trial_folder(folder, key) / "outcome.safetensors"


def run(setup: dict[str, str], *, work: Work) -> None:
    """Run the trial `setup["key"]` to its outcome, from its checkpoint where there is one.

    A trial that cannot succeed has a failed outcome. After any other exception Tune tries again, but `work.attempts`
    times in all; one that is then given up has no outcome. Full storage is reported: it concerns all trials.
    """
    key, path = setup["key"], outcome_path(work.folder, setup["key"])
    config = from_tree(work.jobs[key].tree, work.jobs[key].label)

    def report(metrics: Mapping[str, Any]) -> None:
        from ray import tune

        tune.report({**metrics, "progress": metrics.get("round", 0) / config.total_rounds, "key": key})

    if path.is_file() and (outcome := load_outcome(path)).status == "finished":
        # An earlier driver died before it had made a record of it.
        for metrics in outcome.history:
            report(metrics)
        return
    _clean_process(work.threads)
    try:
        outcome = _attempt(config, work, key, report)
        save_outcome(outcome, path)
        # Tune prints a line on trials without any report.
        last = None if outcome.history else {}
    except Exception as error:
        full = no_room(error)
        if full is None and note(trial_folder(work.folder, key), error) < work.attempts:
            raise
        last = {} if full is None else {FULL: full}
    if last is not None:
        report(last)


def _attempt(config: TrialConfig, work: Work, key: str, report: Callable[[Metrics], None]) -> Outcome:
    device = _device()
    checkpoint = trial_folder(work.folder, key) / "state.safetensors"
    prepared = unpack(config, work.jobs[key].parcel, device)
    store = PoolStore(codec(config, prepared.teacher), prepared.teacher.num_classes, work.pool, key, device)
    product = product_path(trial_folder(work.folder, key))
    rest = {
        "checkpoint": checkpoint,
        "product": product,
        "on_round": report,
        "checkpoint_seconds": work.checkpoint_seconds,
    }
    try:
        return run_trial(config, prepared, store, **rest)
    except MissingSamplesError:
        # Somebody has deleted chunks. From its start the trial comes to the same numbers, only later.
        checkpoint.unlink()
        return run_trial(config, prepared, store, **rest)
    except InputError as error:
        return Outcome(status="failed", reason=str(error), metrics={}, history=[], predictions=[], images=None)


def _device() -> str:
    """The GPU Ray gave this trial, if it is a real one."""
    import ray

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def _clean_process(threads: int) -> None:
    """Make a process that has run other trials like a fresh one, to the trial and to its record."""
    gc.collect()
    torch.set_num_threads(threads)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        # "5" sets the peak of resident memory back to what it is now (Linux).
        peak.write_text("5")
