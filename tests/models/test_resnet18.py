import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models import ResNet18, ResNet34


@pytest.mark.parametrize(("network", "published"), [(ResNet18(), 11_173_962), (ResNet34(), 21_282_122)])
def test_number_of_parameters_is_that_of_the_usual_cifar_nets(network, published):
    with torch.device("meta"):
        assert sum(p.numel() for p in network.build((3, 32, 32), 10).parameters()) == published


@pytest.mark.parametrize(("network", "depth"), [(ResNet18(width=2), 18), (ResNet34(width=2), 34)])
def test_depth_counts_the_layers_with_weights_off_the_shortcuts(network, depth):
    modules = list(network.build((1, 8, 8), 10).modules())
    assert sum(isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3) for m in modules) == depth


@pytest.mark.parametrize("kind", [ResNet18, ResNet34])
def test_a_width_of_nothing_is_named(kind):
    with pytest.raises(InputError, match=rf"^{kind.name} width is 0; accepted: 1 or more$"):
        kind(width=0)
