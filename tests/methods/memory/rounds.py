"""Rounds of samples for tests of the policies, in which a sample's label, and the teacher's class, is its round."""

import torch
import torch.nn.functional as F

from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.memory import LocalStore


def store() -> LocalStore:
    return LocalStore(Codec("unit", (0.0,), (1.0,)), num_classes=100)


def round_of(number: int, size: int) -> Samples:
    labels = torch.full((size,), number)
    return Samples(torch.rand(size, 1, 2, 2), labels, F.one_hot(labels, 100).float())
