"""Small DeepLab networks for semantic segmentation: dilated stages, atrous spatial pyramid pooling, one logit map.

Source: DeepLabV3 (Chen et al., arXiv:1706.05587): the last stages keep the size of the map and dilate their 3x3
convolutions instead; atrous spatial pyramid pooling (ASPP) concatenates a 1x1 convolution, dilated 3x3 convolutions
and the mean over the image; a 1x1 convolution computes the logits, which are enlarged bilinearly. Our choices, so that
a CPU can train them on images of about 100 pixels: the backbones are those of this package, with a stem of stride 2 and
an output stride of 4 (ResNet) or 8 (MobileNetV2); the ASPP has two dilated branches, as many channels as the backbone's
last stage or fewer, no BN after the mean over the image (a batch has only a few such vectors), and no dropout.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.core.task import Task
from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.mobilenet import STAGES, STEM, InvertedResidual, rounded
from condkd_ray.models.network import MAX_LAYERS, Network, WideNetwork, he_init, stage
from condkd_ray.models.resnet import Block

RATES = (3, 6)
"""Dilations of the ASPP: at 96 x 72 pixels the map has 24 x 18 positions. DeepLabV3 has 6, 12 and 18 for maps of 33."""
PYRAMID = 128
"""Channels of each branch of the ASPP of `deeplab_mobilenet_v2`, at 100 percent."""
STRIDE = 8
"""Output stride of `deeplab_mobilenet_v2`; at 4 a forward pass takes more than twice as long on a CPU."""


@dataclass(frozen=True, kw_only=True)
class DeepLabResNet(Network):
    """DeepLab on a CIFAR-type ResNet of depth 6n + 2; the last of its stages "stages.0" to "stages.2" is dilated."""

    paper: ClassVar[str] = "Chen et al., arXiv:1706.05587"
    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    name: Literal["deeplab_resnet"] = "deeplab_resnet"
    depth: int = 8
    """Layers with weights of the ResNet: 8, 14, 20, 32, 44, 56, ..."""
    width: int = 16
    """Channels of the first stage; the others have twice and four times as many, the ASPP four times."""

    def __post_init__(self) -> None:
        deep = 8 <= self.depth <= MAX_LAYERS and self.depth % 6 == 2
        require(deep, "deeplab_resnet depth", self.depth, f"6n + 2, such as 8, 14, 20, at most {MAX_LAYERS}")
        require(self.width >= 1, "deeplab_resnet width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        width, blocks = self.width, (self.depth - 2) // 6
        stages = nn.Sequential(
            stage(Block, width, width, blocks, 1),
            stage(Block, width, 2 * width, blocks, 2),
            stage(partial(Block, dilation=2), 2 * width, 4 * width, blocks, 1),
        )
        return DeepLabModule(_stem(image_shape[0], width), stages, 4 * width, 4 * width, num_classes)


@dataclass(frozen=True, kw_only=True)
class DeepLabMobileNetV2(WideNetwork):
    """DeepLab on MobileNetV2; in the last two of its stages "stages.0" to "stages.6" dilation replaces a stride."""

    paper: ClassVar[str] = "Chen et al., arXiv:1706.05587; Sandler et al., CVPR 2018"
    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    accepted_width: ClassVar[str] = "1 or more, in percent"
    name: Literal["deeplab_mobilenet_v2"] = "deeplab_mobilenet_v2"
    width: int = 100
    """Width multiplier of MobileNetV2 in percent, also of the ASPP. Channels are rounded to multiples of 8."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        stem = rounded(STEM, self.width)
        stages, inputs, strides, dilation = [], stem, 2, 1
        for expansion, base, blocks, stride in STAGES:
            strides *= stride
            if strides > STRIDE:
                dilation, strides, stride = 2 * dilation, STRIDE, 1
            block = partial(InvertedResidual, expansion=expansion, dilation=dilation)
            stages.append(stage(block, inputs, rounded(base, self.width), blocks, stride))
            inputs = rounded(base, self.width)
        pyramid = rounded(PYRAMID, self.width)
        return DeepLabModule(_stem(image_shape[0], stem), nn.Sequential(*stages), inputs, pyramid, num_classes)


class DeepLabModule(nn.Module):
    """The modules `stem`, `stages`, `aspp` and `classifier`, a 1x1 convolution; He initialisation of all but the last.

    `inputs`: channels of the last stage; `width`: D, those of each branch and of the output of the ASPP.
    """

    def __init__(self, stem: nn.Module, stages: nn.Sequential, inputs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages
        self.aspp = Aspp(inputs, width)
        he_init(self)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, C, H, W)."""
        maps = self.classifier(self.aspp(self.stages(self.stem(images))))
        return F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: concatenated branches that see different surroundings of a position, then 1x1."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.near = _normalised(inputs, width, 1)
        self.around = nn.ModuleList(_normalised(inputs, width, 3, dilation=rate) for rate in RATES)
        self.everywhere = nn.Conv2d(inputs, width, 1)
        self.project = _normalised((2 + len(RATES)) * width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, width, H, W) of (B, inputs, H, W)."""
        near = self.near(maps)
        mean = F.relu(self.everywhere(maps.mean((2, 3), keepdim=True))).expand_as(near)
        return self.project(torch.cat([near, *(branch(maps) for branch in self.around), mean], 1))


def _normalised(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution without bias, BN and ReLU; the map keeps its size, apart from the stride."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(convolution, BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _stem(channels: int, outputs: int) -> nn.Sequential:
    return _normalised(channels, outputs, 3, stride=2)
