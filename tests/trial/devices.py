"""The toy world on any device, and the available devices."""

from dataclasses import replace

import pytest
import torch
from toy import make_prepared

from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.diagnosis import Landmarks

GPU = pytest.param(
    "cuda",
    marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
)
DEVICES = ["cpu", GPU]
TINY = TrialConfig(
    teacher=TeacherConfig(network=ResNet(depth=8, width=4), training=Supervised(epochs=4)),
    student=ResNet(depth=8, width=2),
    inversion=Fast(steps=1, batch=16, latent=16, width=8),
    distiller=Distiller(steps=1, batch=16),
    rounds=1,
)
"""A trial of digits that takes one or two seconds."""


def prepared_on(device: str) -> Prepared:
    """Return `toy.make_prepared` as workers get it, with all but real images on `device`."""
    prepared = make_prepared()
    assert prepared.landmarks is not None
    assert prepared.condensed is not None
    tensors = {name: tensor.to(device) for name, tensor in vars(prepared.landmarks).items() if tensor is not None}
    return replace(
        prepared,
        teacher=prepared.teacher.to(device),
        condensed=prepared.condensed.to(device),
        proxy=prepared.proxy.to(device),
        landmarks=Landmarks(**tensors),
    )
