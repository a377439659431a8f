"""The student's steps and batches in the toy world, for several test files."""

import copy

import torch
from torch import Tensor, nn
from toy import make_prepared, toy_config

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.distiller import Distiller, DistillerState, next_batch
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import own_images, start
from condkd_ray.trial.run import local_store


def begin(distiller: Distiller, teacher: Teacher, rounds: int = 3) -> DistillerState:
    """Return the initial state with a copy of the teacher as the student."""
    return distiller.init(copy.deepcopy(teacher.network).requires_grad_().train(), rounds)


def ones(batch: Samples) -> Tensor:
    return torch.ones(len(batch))


def begin_fresh(distiller: Distiller, teacher: Teacher, rounds: int = 1) -> DistillerState:
    """Return the initial state with a newly initialised student."""
    with Streams(0).forked("init/student"):
        student = toy_config().student.build(teacher.image_shape, teacher.num_classes)
    return distiller.init(student.train(), rounds)


def drawn(config: TrialConfig) -> tuple[Samples, Tensor, Samples, Samples]:
    """Return a batch of round 0 with its weights, and the sample sets that it was drawn from."""
    prepared = make_prepared()
    state, store = start(config, prepared), local_store(config, prepared, None)
    fresh, _ = own_images(config, prepared, state, store)
    config.memory.add(state.memory, store, fresh, teacher=prepared.teacher, rng=state.streams)
    assert prepared.condensed is not None
    batch, weights, _ = next_batch(
        *(config.distiller, config.memory, state.memory, store, prepared.condensed),
        progress=0.0,
        teacher=prepared.teacher,
        rng=state.streams,
    )
    return batch, weights, fresh, prepared.condensed


def contained(part: Tensor, whole: Tensor) -> bool:
    return bool((part[:, None] == whole[None]).flatten(2).all(2).any(1).all())


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
