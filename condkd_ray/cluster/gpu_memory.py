"""Whether trials that share a GPU fit into its memory, which Ray does not look at: found out before they begin."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import ray
import torch

from condkd_ray.cluster.jobs import Job, unpack
from condkd_ray.core.config import content_hash
from condkd_ray.core.method import InputError, Metrics, require
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.device_rows import default_limit, most_bytes
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.loop import TrialState, own_images, run_round, start
from condkd_ray.trial.run import local_store
from condkd_ray.trial.synthesis import Producer, codec, settle

Role = Literal["trial", "learner", "producer"]
"""Of a process: a trial that makes its images itself, or the parts of one with a pipeline."""


class Need(NamedTuple):
    """Bytes of a GPU's memory that a trial takes at most, and that the GPU has.

    `samples`: of the former, what its samples may come to in all its rounds.
    """

    peak: int
    total: int
    samples: int = 0


TOO_LARGE = Need(0, 0)
"""Of one that does not even fit alone."""


def check_packing(
    jobs: Iterable[Job], gpus: float, per_producer: float = 0, device_pool_limit: int | None = None
) -> None:
    """Raise `InputError` where a trial, or one of its producers, takes more of a GPU's memory than its part of it.

    One step of everything is run for each kind of trial, on a whole GPU. Nothing is done for whole GPUs, nor where
    those that Ray counts are on paper only. `device_pool_limit`: of `ClusterOptions`.
    """
    if not any(0 < part < 1 for part in (gpus, per_producer)):
        return
    measure = ray.remote(num_gpus=1, num_cpus=0, max_calls=1)(_need)
    for job in _kinds(jobs):
        for role in _roles(job):
            part, flag = (per_producer, "--gpus-per-producer") if role == "producer" else (gpus, "--gpus-per-trial")
            if not 0 < part < 1:
                continue
            need = ray.get(measure.remote(job, role, gpus, device_pool_limit))
            if need is None:
                return
            accepted = "smaller batches or networks"
            require(need != TOO_LARGE, f"GPU memory of a {role}", f"less than {job.label} takes", accepted)
            check_need(job.label, need, part, flag)


def check_need(label: str, need: Need, gpus: float, flag: str = "--gpus-per-trial") -> None:
    """Raise `InputError` where so many with this need would not fit side by side."""
    part = gpus * need.total
    if need.peak > part:
        least = need.peak / need.total
        # A lower limit helps only where the samples are what does not fit.
        spared = f", or a lower --device-pool-limit: its samples may come to {need.samples / 1e9:.1f} GB of these"
        raise InputError(
            f"{flag} is {gpus:g}, {part / 1e9:.1f} GB of a GPU; accepted: {least:.2f} or more, as {label} takes "
            f"{need.peak / 1e9:.1f} GB{spared if need.peak - need.samples <= part else ''}"
        )


def _roles(job: Job) -> tuple[Role, ...]:
    return ("trial",) if job.config.pipeline is None else ("learner", "producer")


def _kinds(jobs: Iterable[Job]) -> list[Job]:
    """One trial of each kind: those that differ in seed alone take the same memory."""
    found: dict[str, Job] = {}
    for job in jobs:
        found.setdefault(content_hash(one_step(job.config)), job)
    return list(found.values())


def one_step(config: TrialConfig) -> TrialConfig:
    """The config with one round, and in it one step of whatever takes steps: enough for the peak."""
    parts: dict[str, Any] = {}
    for name in ("inversion", "guidance", "memory", "distiller"):
        part = getattr(config, name)
        if any(field.name == "steps" for field in fields(part)):
            parts[name] = replace(part, steps=1)
    parts["distiller"] = parts["distiller"].within(1)
    if config.inversion.warm_up:
        # Its rounds have no step of the student.
        parts["inversion"] = replace(parts["inversion"], warm_up=0)
    return replace(config, seed=0, rounds=1, evaluate_every=1, **parts)


def _need(job: Job, role: Role, gpus: float, device_pool_limit: int | None) -> Need | None:
    if not torch.cuda.is_available():
        return None
    config = one_step(job.config)
    try:
        prepared = unpack(config, job.prepared, "cuda")
        work(config, prepared, role)
    except torch.cuda.OutOfMemoryError:
        return TOO_LARGE
    free, total = torch.cuda.mem_get_info()
    # What the driver and the context take lies beside what PyTorch knows of.
    beside = max(0, total - free - torch.cuda.memory_reserved())
    held = 0
    if role != "producer":
        device = prepared.teacher.device
        limit = default_limit(device, gpus) if device_pool_limit is None else device_pool_limit
        held = samples_bytes(job.config, prepared.teacher, limit)
    return Need(torch.cuda.max_memory_reserved() + beside + held, total, held)


def samples_bytes(config: TrialConfig, teacher: Teacher, limit: int) -> int:
    """Most bytes of a GPU that the samples of all rounds of a trial take there, if none is let go of before."""
    whole = round_bytes(config, teacher.image_shape, teacher.num_classes, logits=config.keeps_logits)
    return most_bytes(config.total_rounds * whole, limit)


def work(config: TrialConfig, prepared: Prepared, role: Role) -> None:
    """A round of what a process with this role does."""
    state, store = start(config, prepared), local_store(config, prepared, None)
    if role == "producer":
        weights = state.distiller.student.state_dict()
        Producer(config, prepared, 0, None).make((weights, store.class_counts))
    else:
        run_round(config, prepared, state, store, own_images if role == "trial" else _grey)


def _grey(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """As many images as a round brings, that another process has made."""
    teacher, count = prepared.teacher, config.inversion.images_per_round
    labels = torch.arange(count, device=teacher.device) % teacher.num_classes
    images = torch.zeros(count, *teacher.image_shape, device=teacher.device)
    return settle(unseen(images, labels), codec(config, teacher), teacher, ask=config.keeps_logits), {}
