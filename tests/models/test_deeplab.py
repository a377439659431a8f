"""The DeepLab networks: size of their maps, dilation, and reuse of the classifiers' blocks."""

import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models import DeepLabMobileNetV2, DeepLabResNet, MobileNetV2, ResNet, parse
from condkd_ray.models.mobilenet import InvertedResidual
from condkd_ray.models.resnet import Block

SHAPE = (3, 72, 96)


@pytest.mark.parametrize(("network", "stride"), [(DeepLabResNet(width=4), 4), (DeepLabMobileNetV2(width=20), 8)])
def test_logits_have_the_size_of_the_image_and_the_last_map_a_fraction_of_it(network, stride):
    module = network.build(SHAPE, 11)
    images = torch.randn(2, *SHAPE)
    assert module(images).shape == (2, 11, 72, 96)
    assert module.stages(module.stem(images)).shape[2:] == (72 // stride, 96 // stride)
    assert module(torch.randn(2, 3, 9, 13)).shape == (2, 11, 9, 13)


def test_only_the_last_stages_are_dilated():
    def dilations(module: nn.Module) -> list[int]:
        return [max(c.dilation[0] for c in stage.modules() if isinstance(c, nn.Conv2d)) for stage in module.stages]

    assert dilations(DeepLabResNet(width=4).build(SHAPE, 11)) == [1, 1, 2]
    assert dilations(DeepLabMobileNetV2(width=20).build(SHAPE, 11)) == [1, 1, 1, 1, 1, 2, 2]
    assert set(dilations(ResNet(width=4).build(SHAPE, 11))) == {1}
    assert set(dilations(MobileNetV2(width=20).build(SHAPE, 11))) == {1}


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_dilated_block_keeps_the_size_and_draws_the_same_weights(dilation):
    for make in (lambda d: Block(4, 4, 1, dilation=d), lambda d: InvertedResidual(4, 4, 1, expansion=2, dilation=d)):
        with Streams(0).forked("init/student"):
            plain = make(1)
        with Streams(0).forked("init/student"):
            dilated = make(dilation)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dilated.parameters(), strict=True))
        assert dilated(torch.randn(2, 4, 9, 7)).shape == (2, 4, 9, 7)


def test_logits_depend_on_far_pixels_through_the_pyramid():
    with Streams(0).forked("init/student"):
        module = DeepLabResNet(width=4).build(SHAPE, 3).eval()
    images = torch.randn(1, *SHAPE, requires_grad=True)
    module(images)[0, 0, 0, 0].backward()
    assert images.grad is not None
    assert images.grad[0, :, -16:, -16:].abs().sum() > 0


@pytest.mark.parametrize(("fields", "message"), [({"depth": 9}, "depth is 9"), ({"width": 0}, "width is 0")])
def test_impossible_sizes_are_named(fields, message):
    with pytest.raises(InputError, match=f"^deeplab_resnet {message}; accepted: "):
        DeepLabResNet(**fields)
    with pytest.raises(InputError, match=r"^deeplab_mobilenet_v2 width is 0; accepted: 1 or more, in percent"):
        parse("deeplab_mobilenet_v2-0")
