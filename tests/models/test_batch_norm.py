import copy

import pytest
import torch
from torch import nn

from condkd_ray.models.batch_norm import BatchNorm2d


def pair(shape=(6, 5, 4, 3)):
    """Return our layer and PyTorch's with equal weights and statistics, and images (B, C, H, W)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=draw).contiguous(memory_format=torch.channels_last)
    ours = BatchNorm2d(shape[1])
    for tensor in (ours.weight, ours.bias, ours.running_mean):
        tensor.data.copy_(torch.randn(shape[1], generator=draw))
    ours.running_var.copy_(torch.rand(shape[1], generator=draw) + 0.1)
    theirs = nn.BatchNorm2d(shape[1])
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, images


@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_statistics_equal_those_of_pytorch(training):
    found = []
    *layers, images = pair()
    for layer in layers:
        layer.train(training)
        inputs = images.clone().requires_grad_()
        outputs = layer(inputs)
        gradients = torch.autograd.grad((outputs * outputs.detach().sin()).sum(), [inputs, layer.weight, layer.bias])
        found.append([outputs, *gradients, *layer.buffers()])
    torch.testing.assert_close(*found)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)


def test_under_autocast_type_and_values_equal_those_of_pytorch():
    ours, theirs, images = pair()
    convolution = nn.Conv2d(5, 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [layer.eval()(convolution(images)) for layer in (ours, theirs)]
    assert outputs[0].dtype == torch.bfloat16
    assert torch.equal(*outputs)


def test_the_layer_is_an_instance_of_pytorchs():
    ours, _, _ = pair()
    assert isinstance(copy.deepcopy(ours), nn.BatchNorm2d)
