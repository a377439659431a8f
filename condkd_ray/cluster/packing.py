"""Whether trials that share a GPU fit into its memory, which Ray does not look at: found out before they begin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch

from condkd_ray.cluster.parcels import unpack
from condkd_ray.cluster.trial_jobs import Job
from condkd_ray.config import content_hash, from_tree
from condkd_ray.method import InputError, require
from condkd_ray.run import local_store
from condkd_ray.trial import TrialConfig, run_round, start


class Need(NamedTuple):
    """Bytes of a GPU's memory that a trial took at most, and that the GPU has."""

    peak: int
    total: int


TOO_LARGE = Need(0, 0)
"""Of one that does not even fit alone."""


def check_packing(jobs: Iterable[Job], gpus_per_trial: float) -> None:
    """Raise `InputError` where a trial's peak of GPU memory is above its part of the GPU.

    One step of everything is run for each kind of trial, on a whole GPU. Nothing is done for whole GPUs, nor where
    those that Ray counts are on paper only.
    """
    import ray

    if not 0 < gpus_per_trial < 1:
        return
    measure = ray.remote(num_gpus=1, num_cpus=0, max_calls=1)(_need)
    for label, job in _kinds(jobs).items():
        need = ray.get(measure.remote(job))
        if need is None:
            return
        accepted = "smaller batches or networks"
        require(need != TOO_LARGE, "GPU memory of a trial", f"less than {label} takes", accepted)
        check_need(label, need, gpus_per_trial)


def check_need(label: str, need: Need, gpus_per_trial: float) -> None:
    """Raise `InputError` where so many trials with this need would not fit side by side."""
    part = gpus_per_trial * need.total
    if need.peak > part:
        least = need.peak / need.total
        raise InputError(
            f"--gpus-per-trial is {gpus_per_trial:g}, {part / 1e9:.1f} GB of a GPU; accepted: {least:.2f} or more, as "
            f"{label} takes {need.peak / 1e9:.1f} GB"
        )


def _kinds(jobs: Iterable[Job]) -> dict[str, Job]:
    """One trial of each kind, by its label: those that differ in seed alone take the same memory."""
    found: dict[str, Job] = {}
    for job in jobs:
        found.setdefault(content_hash(one_step(from_tree(job.tree, job.label))), job)
    return {job.label: job for job in found.values()}


def one_step(config: TrialConfig) -> TrialConfig:
    """The config with one round, and in it one step of whatever takes steps: enough for the peak."""
    parts: dict[str, Any] = {}
    for name in ("inversion", "guidance", "memory", "distiller"):
        part = getattr(config, name)
        if any(field.name == "steps" for field in fields(part)):
            parts[name] = replace(part, steps=1)
    return replace(config, seed=0, rounds=1, evaluate_every=1, **parts)


def _need(job: Job) -> Need | None:
    if not torch.cuda.is_available():
        return None
    config = one_step(from_tree(job.tree, job.label))
    prepared = unpack(config, job.parcel, "cuda")
    try:
        run_round(config, prepared, start(config, prepared), local_store(config, prepared, None))
    except torch.cuda.OutOfMemoryError:
        return TOO_LARGE
    free, total = torch.cuda.mem_get_info()
    # What the driver and the context take lies beside what PyTorch knows of.
    beside = max(0, total - free - torch.cuda.memory_reserved())
    return Need(torch.cuda.max_memory_reserved() + beside, total)
