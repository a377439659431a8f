"""The toy world on any device, and those that are here."""

from dataclasses import replace

import pytest
import torch
from toy import make_prepared

from condkd_ray.trial.config import Prepared
from condkd_ray.trial.diagnosis import Landmarks

GPU = pytest.param(
    "cuda",
    marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
)
DEVICES = ["cpu", GPU]


def prepared_on(device: str) -> Prepared:
    """`toy.make_prepared` as workers get it: all but real images on `device`."""
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
