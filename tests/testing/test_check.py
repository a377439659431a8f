"""Tests of `condkd_ray.testing.check`: the methods of this package pass, and methods that break a rule fail."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from contracts.toy_guides import FORMS
from contracts.toy_methods import INVERTERS, sized, small
from methods.condensation.condensers import nested_methods

from condkd_ray.core.families import register, unregister
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.guidance import Mmd
from condkd_ray.methods.inversion import DeepInversion
from condkd_ray.methods.losses.kd import AnyKdLoss, Attention, Hinton, SoftCrossEntropy
from condkd_ray.methods.memory import AnyMemory
from condkd_ray.methods.targets import AnyTargets
from condkd_ray.methods.weighing import AnyWeighing
from condkd_ray.models import ConvNet
from condkd_ray.testing import CHECKS, check

LOSSES = [kind() for kind in get_args(AnyKdLoss) if kind is not Attention]
LOSSES.append(Attention(teacher_layers=("a",), student_layers=("a",)))
PARTS = [kind() for family in (AnyTargets, AnyWeighing) for kind in get_args(family)]
MEMORIES = [sized(kind, **{"steps": 1, "batch": 16, "latent": 16, "width": 8}) for kind in get_args(AnyMemory)]
OTHERS = [DataConfig(name="digits"), ConvNet(width=8)]


@pytest.mark.parametrize(
    "method",
    [*(small(kind, steps=4) for kind in INVERTERS), *FORMS, *LOSSES, *PARTS, *MEMORIES, *OTHERS],
    ids=lambda method: f"{method.name} {getattr(method, 'condition', '')}",
)
def test_every_method_satisfies_the_contract_of_its_family(method):
    check(method)


def test_condensations_satisfy_the_contract_of_their_family(tmp_path: Path):
    for method in nested_methods(2, tmp_path):
        if method.name != "imported":  # its images have another shape
            check(method)


def test_every_family_has_a_check():
    from condkd_ray.commands.methods_table import OPEN

    assert {family.name for family in OPEN.values()} == CHECKS.keys()


@dataclass(frozen=True, kw_only=True)
class Drawing(DeepInversion):
    """Draws from the global random generator, so that equal seeds give different images."""

    name: Literal["drawing"] = "drawing"

    def augment(self, images, *, teacher, rng):
        return images + torch.rand_like(images)


@dataclass(frozen=True, kw_only=True)
class ZeroGradient(Mmd):
    """Its penalty has a gradient of zero."""

    name: Literal["zero_gradient"] = "zero_gradient"

    def penalty(self, state, fake, labels, *, rng):
        return 0 * fake.sum()


@dataclass(frozen=True, kw_only=True)
class Mixing(Hinton):
    """The loss of an image depends on the other images."""

    name: Literal["mixing"] = "mixing"

    def __call__(self, student, teacher, labels):
        losses = super().__call__(student, teacher, labels)
        return losses + losses.mean()


@dataclass(frozen=True, kw_only=True)
class Claiming(SoftCrossEntropy):
    ours = ("nothing",)
    name: Literal["claiming"] = "claiming"


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (small(Drawing), "equal seeds give equal images"),
        (small(ZeroGradient), "the gradient is non-zero at every image"),
        (Mixing(), "not close"),
        (Claiming(), "ours names fields"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_error_of_a_method_that_breaks_its_contract_names_the_rule(method, rule):
    with pytest.raises(AssertionError, match="is registered under its name"):
        check(method)
    register(type(method))
    try:
        with pytest.raises(AssertionError, match=rule):
            check(method)
    finally:
        unregister(type(method))


def test_other_batch_sizes_pass():
    check(replace(small(DeepInversion), batch=7))
