"""Check, before trials start, that the trials that share a GPU fit into its memory, which Ray does not check."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import ray
import torch

from condkd_ray.cluster.jobs import Job, unpack
from condkd_ray.cluster.lost import with_retries
from condkd_ray.core.config import content_hash
from condkd_ray.core.environment import CONTEXT_BYTES, is_out_of_memory, set_up_gpu
from condkd_ray.core.method import InputError, Metrics, require
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.device_rows import most_bytes, quarter
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.evaluation import predict
from condkd_ray.trial.loop import TrialState, own_images, run_round, start
from condkd_ray.trial.outcome import memory_logits
from condkd_ray.trial.run import local_store, with_images_on_device
from condkd_ray.trial.synthesis import Producer, codec, settle

Role = Literal["trial", "learner", "producer"]
"""Role of a process: a trial that makes its images itself, or the learner or a producer of a trial with a pipeline."""


class Need(NamedTuple):
    """GPU memory in bytes: the need of a process, and the memory of the GPU."""

    peak: int
    """Peak memory of the process, its CUDA context included."""
    total: int
    """Memory of the GPU."""
    outside: int = 0
    """Memory of the GPU that programs other than trials hold, such as the driver."""
    samples: int = 0
    """Part of the peak: the largest size of the trial's samples over all its rounds."""

    @property
    def room(self) -> int:
        """Memory left for all trials."""
        return self.total - self.outside


TOO_LARGE = Need(0, 0)
"""Need of a process that does not fit even if it runs alone."""


def check_packing(
    jobs: Iterable[Job], gpus: float, per_producer: float = 0, device_pool_limit: int | None = None
) -> None:
    """Raise `InputError` if a trial, or one of its producers, needs more of a GPU's memory than its share.

    `gpus`, `per_producer`: GPUs of a trial and of a producer. `device_pool_limit`: as in `ClusterOptions`.

    One round of two steps is run for each kind of trial. The round waits for a whole GPU, so no trial may run yet. The
    check is skipped for whole GPUs, and if PyTorch cannot use the GPUs that Ray counts. Raises `ClusterError` if a
    process or node is lost repeatedly during the check.

    The check is an estimate, which spares most users a failed sweep. A trial that exceeds its share in a later round
    fails with a message, see `core.environment.set_up_gpu`.
    """
    if not any(0 < part < 1 for part in (gpus, per_producer)):
        return
    measure = ray.remote(num_gpus=1, num_cpus=0, max_calls=1)(_need)
    for job in kinds(jobs):
        for role in roles(job):
            part, flag = (per_producer, "--gpus-per-producer") if role == "producer" else (gpus, "--gpus-per-trial")
            if not 0 < part < 1:
                continue
            need = with_retries(lambda job=job, role=role: ray.get(measure.remote(job, role)), f"measuring {job.label}")
            if need is None:
                return
            accepted = "smaller batches or networks"
            require(need != TOO_LARGE, f"GPU memory of a {role}", f"less than {job.label} takes", accepted)
            if role != "producer":
                need = with_samples(need, job, part, device_pool_limit)
            check_need(job.label, need, part, flag)


def check_need(label: str, need: Need, gpus: float, flag: str = "--gpus-per-trial") -> None:
    """Raise `InputError` if trials with this need would not fit when each gets `gpus` of a GPU."""
    part = gpus * need.room
    there = f"at most the {need.room / 1e9:.1f} GB that other programs leave: smaller batches or networks"
    require(need.peak <= need.room, f"GPU memory of {label}", f"{need.peak / 1e9:.1f} GB", there)
    if need.peak > part:
        least = need.peak / need.room
        # A lower limit helps only if the trial fits without its samples.
        spared = f", or a lower --device-pool-limit: its samples may reach {need.samples / 1e9:.1f} GB of these"
        raise InputError(
            f"{flag} is {gpus:g}, {part / 1e9:.1f} GB of a GPU; accepted: {least:.2f} or more: {label} takes "
            f"{need.peak / 1e9:.1f} GB{spared if need.peak - need.samples <= part else ''}"
        )


def with_samples(need: Need, job: Job, part: float, limit: int | None) -> Need:
    """Return the need of a trial with `part` of a GPU, with the largest size of its samples there added.

    This is the size if no sample is dropped, but at most `limit` bytes (None: the default limit). A trial that draws
    from the samples of all trials of a sweep may reach the limit.
    """
    config, teacher = job.config, job.prepared.teacher
    shape, classes = teacher["image_shape"], teacher["num_classes"]
    whole = config.total_rounds * round_bytes(config, shape, classes, logits=config.keeps_logits)
    limit = quarter(need.total, part) if limit is None else limit
    held = most_bytes(limit if job.scope == "sweep" else whole, limit)
    return need._replace(peak=need.peak + held, samples=held)


def roles(job: Job) -> tuple[Role, ...]:
    """Return the roles of the processes that run a trial."""
    return ("trial",) if job.config.pipeline is None else ("learner", "producer")


def kinds(jobs: Iterable[Job]) -> list[Job]:
    """Return one trial of each kind: trials that differ only in their seed need the same memory."""
    found: dict[str, Job] = {}
    for job in jobs:
        found.setdefault(content_hash(short(job.config)), job)
    return list(found.values())


def short(config: TrialConfig) -> TrialConfig:
    """Return the config with one round, and with at most two steps in each of its parts.

    One step is not enough, because optimisers allocate their momenta at its end and keep them.
    """
    parts: dict[str, Any] = {}
    for name in ("inversion", "guidance", "memory", "distiller"):
        part = getattr(config, name)
        if any(field.name == "steps" for field in fields(part)):
            parts[name] = replace(part, steps=min(2, part.steps))
    parts["distiller"] = parts["distiller"].within(1)
    if config.inversion.warm_up:
        # A warm-up round has no step of the student.
        parts["inversion"] = replace(parts["inversion"], warm_up=0)
    return replace(config, seed=0, rounds=1, evaluate_every=1, **parts)


def _need(job: Job, role: Role) -> Need | None:
    if not torch.cuda.is_available():
        return None
    config = short(job.config)
    set_up_gpu()
    return measured(lambda: work(config, unpack(config, job.prepared, "cuda"), role))


def measured(run: Callable[[], None]) -> Need:
    """Return the GPU memory that `run` needs. Call it in a process that has not used the GPU yet.

    Returns `TOO_LARGE` if the GPU is out of memory. For memory outside PyTorch, the GPU reports only the sum over all
    processes. So this process is assumed to hold one CUDA context, for which the worker's share of memory also leaves
    room, and all memory added during `run`. The rest is assumed to belong to other programs and to stay.
    """
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats()
    before = _outside()
    try:
        run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return TOO_LARGE
    own = CONTEXT_BYTES + max(0, _outside() - before)
    # Reserved, not allocated: memory idle between tensors is not available to others either.
    peak = torch.cuda.max_memory_reserved() + own
    return Need(peak, torch.cuda.mem_get_info()[1], max(0, before - CONTEXT_BYTES))


def _outside() -> int:
    """Return the used bytes of the GPU outside this process's PyTorch."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())


def work(config: TrialConfig, prepared: Prepared, role: Role) -> None:
    """Run one round of a process with this role, and the computations of the end of a trial.

    Raises `NonFiniteError` if a loss is not finite, and `RuntimeError` if the GPU is out of memory.
    """
    prepared = with_images_on_device(prepared)
    state, store = start(config, prepared), local_store(config, prepared, None)
    if role == "producer":
        weights = state.distiller.student.state_dict()
        Producer(config, prepared, 0, None).make((weights, store.class_counts))
    else:
        run_round(config, prepared, state, store, own_images if role == "trial" else _grey)
        memory_logits(config, prepared, state, store)
        if prepared.test is not None:
            predict(state.distiller.student, prepared.test, prepared.teacher)


def _grey(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """Return grey images in place of those that another process delivers for a round, in the same number."""
    teacher, count = prepared.teacher, config.inversion.images_per_round
    labels = torch.arange(count, device=teacher.device) % teacher.num_classes
    images = torch.zeros(count, *teacher.image_shape, device=teacher.device)
    return settle(unseen(images, labels), codec(config, teacher), teacher, logits=config.keeps_logits), {}
