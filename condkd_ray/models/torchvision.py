"""Torchvision's classifiers by name, made for 224x224 images, with random weights.

Their parameters keep torchvision's names, so that a file of weights saved from one loads. Our choice: no dropout and
no stochastic depth, because a layer's draw from the global generator would make trials unrepeatable; running statistics
of BN move by PyTorch's 0.1 a step, because at some models' own pace (0.0003 in `mnasnet`) they would still be the
initial ones after a few hundred steps; a grey image is read as a colour image of three equal channels, by the sum of
the first convolution's weights over its channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network

_MODELS = {
    1: """efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
        efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l mnasnet0_5 mnasnet0_75
        mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_x_800mf
        regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf
        regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf resnet18 resnet34 resnet50
        resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
        shufflenet_v2_x1_5 shufflenet_v2_x2_0 wide_resnet50_2 wide_resnet101_2""",
    29: "densenet121 densenet161 densenet169 densenet201",
    32: """convnext_tiny convnext_small convnext_base convnext_large vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19
        vgg19_bn""",
    63: "alexnet",
}
"""By the smallest side they run on, as tried; those of 1 pad until the end. Left out: `googlenet` and `inception_v3`
(more than one answer when training), `squeezenet` (ends in a convolution), the transformers (one size of image, or
maps with the channels last)."""
SMALLEST = {model: size for size, models in _MODELS.items() for model in models.split()}
"""Of each accepted model the smallest side of an image, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Torchvision(Network):
    """One of torchvision's convolutional classifiers; on images of 32x32 most end with a map of one place."""

    name: Literal["torchvision"] = "torchvision"
    model: str = "resnet18"
    """Its name in torchvision, such as `resnet50` or `efficientnet_b0`."""

    def __post_init__(self) -> None:
        require(self.model in SMALLEST, "torchvision model", self.model, ", ".join(sorted(SMALLEST)))

    @property
    def min_size(self) -> int:
        """Of the model's own poolings and kernels."""
        return SMALLEST[self.model]

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels = image_shape[0]
        require(channels in (1, 3), f"channels of images for torchvision's {self.model}", channels, "1 (grey) or 3")
        from torchvision import models, ops  # not at the top: over a second to import

        module = models.get_model(self.model, weights=None, num_classes=num_classes)
        for layer in module.modules():
            if isinstance(layer, (nn.Dropout, ops.StochasticDepth)):
                layer.p = 0.0
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1
        if channels == 1:
            _read_grey(module)
        return module


@torch.no_grad()
def _read_grey(module: nn.Module) -> None:
    """Let the first convolution of `module` read one channel as it did three equal ones."""
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.sum(1, keepdim=True))
    first.in_channels = 1
