"""How good a student is: against its teacher on the proxy set, and by accuracy on real images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.proxy import compare

ROUND_SUBSET = 1000
"""Validation images measured in a round, at most; test images too, unless a config asks for all in each round."""
TestRounds = Literal["subset", "full"]
"""Test images measured in a round: at most `ROUND_SUBSET` (our choice), or all (PRE-DFKD's mean and variance)."""
BATCH = 500


@torch.no_grad()
def predict(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """(N,) predicted classes, on the CPU, of a network that reads the teacher's space; leaves it in eval mode."""
    network.eval()
    parts = (images[slice(a, a + BATCH)] for a in range(0, len(images), BATCH))
    found = [network(part.samples(teacher.mean, teacher.std).images.to(teacher.device)).argmax(1) for part in parts]
    return torch.cat(found).cpu()


def accuracy(network: nn.Module, images: RealImages, teacher: Teacher) -> float:
    """Share of images whose class is named right."""
    return (predict(network, images, teacher) == images.labels).double().mean().item()


def in_round(test: RealImages, rounds: TestRounds) -> RealImages:
    """The test images that are measured in a round."""
    return test if rounds == "full" else test[:ROUND_SUBSET]


@torch.no_grad()
def evaluate(
    student: nn.Module,
    *,
    teacher: Teacher,
    proxy: Samples,
    val: RealImages | None,
    test: RealImages | None,
    test_rounds: TestRounds = "subset",
) -> Metrics:
    """A round's report: agreement with the teacher on the proxy set, accuracy on validation and test images.

    Of the latter two at most `ROUND_SUBSET` are measured, or all test images. Those that are None are left out.
    """
    student.eval()
    metrics = {f"proxy/{name}": value.item() for name, value in compare(student, proxy).items()}
    if val is not None:
        metrics["student/val_accuracy"] = accuracy(student, val[slice(ROUND_SUBSET)], teacher)
    if test is not None:
        metrics["student/test_accuracy"] = accuracy(student, in_round(test, test_rounds), teacher)
    return metrics
