"""Costs of networks, compared with published and measured ones and with a sum by hand."""

import pytest
import torch
from torch import nn

from condkd_ray.models import Torchvision, parse
from condkd_ray.models.cost import Cost, cost, cost_of

# Multiply-adds at 3x32x32 in units of 10^6, measured on other implementations of the same architectures.
MEASURED = {
    "wrn-40-2": 328,
    "wrn-16-1": 27,
    "wrn-16-2": 101,
    "wrn-40-1": 83,
    "resnet34": 1159,
    "resnet18": 555,
    "vgg11": 209,
    "resnet-8-16": 12.5,
}


@pytest.mark.parametrize("text", MEASURED)
def test_multiply_adds_are_those_of_the_literature(text):
    assert cost_of(parse(text), (3, 32, 32), 10).multiply_adds == pytest.approx(MEASURED[text] * 1e6, rel=0.02)


def test_parts_of_a_cost_against_a_sum_by_hand():
    module = nn.Sequential(
        nn.Conv2d(4, 6, (3, 1), stride=2, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(60, 5), nn.Linear(5, 7)
    )
    # (11 - 3) / 2 + 1 rows, (3 - 1) / 2 + 1 columns.
    assert module[0](torch.zeros(1, 4, 11, 3)).shape == (1, 6, 5, 2)
    multiply_adds = 6 * 5 * 2 * (2 * 3) + 60 * 5 + 5 * 7
    parameters = 6 * 2 * 3 + 6 + 2 * 6 + 61 * 5 + 6 * 7
    assert cost(module, (4, 11, 3)) == Cost(parameters, multiply_adds, features=5, normalised=True)


def test_cost_does_not_change_the_network():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert not cost(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)).normalised
    assert cost(module, (3, 2, 2)).features == 12
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_the_cost_of_a_large_network_is_computed_without_its_memory():
    counted = cost_of(Torchvision(model="vgg19"), (3, 224, 224), 1000)
    # Torchvision's own figures for this model: 143 667 240 parameters, 19.63 GFLOPS.
    assert counted.parameters == 143_667_240
    assert counted.multiply_adds == pytest.approx(19.63e9, rel=0.005)
