"""Networks for small images that are chains of convolutions, without shortcuts.

Departures from the papers are our choice. Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network, WideNetwork, he_init

# LeNet-5 (LeCun et al., Proc. IEEE 1998) and its half-width student, the MNIST pair of the data-free literature.
# Departures, those usual in this field: ReLU for the squashing functions, max pooling for the trained subsampling, full
# connection between the first two convolutions, a linear output layer. No batch normalisation, so methods that need its
# statistics cannot use it. The layer of 84 (42) units is called "fc2" among layers: FC-2 of Wang's soft targets, before
# its ReLU.

LENET_KERNEL = 5


@dataclass(frozen=True, kw_only=True)
class _LeNet(Network):
    """A LeNet by the channels of its convolutions and the units of its hidden layer."""

    paper: ClassVar[str] = "LeCun et al., Proc. IEEE 1998"
    convs: ClassVar[tuple[int, int, int]]
    hidden: ClassVar[int]

    @property
    def min_size(self) -> int:
        """Two rounds of 5x5 convolution and halving leave one pixel of 16."""
        return 16

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels, *sides = image_shape
        first, second, third = self.convs
        layers = [
            *(nn.Conv2d(channels, first, LENET_KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, LENET_KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            # It covers the map that remains: 5x5 of 32x32 images as in the paper, 4x4 of 28x28.
            *(nn.Conv2d(second, third, (_lenet_side(sides[0]), _lenet_side(sides[1]))), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(third, self.hidden), nn.ReLU(), nn.Linear(self.hidden, num_classes)),
        ]
        named = [(str(index), layer) for index, layer in enumerate(layers)]
        # A name for what the hidden layer gives. Renaming the layer itself would make weights saved before unreadable.
        named.insert(10, ("fc2", nn.Identity()))
        return nn.Sequential(OrderedDict(named))


@dataclass(frozen=True, kw_only=True)
class LeNet5(_LeNet):
    """Convolutions of 6, 16 and 120 channels, a hidden layer of 84."""

    name: Literal["lenet5"] = "lenet5"
    convs = (6, 16, 120)
    hidden = 84


@dataclass(frozen=True, kw_only=True)
class LeNet5Half(_LeNet):
    """Convolutions of 3, 8 and 60 channels, a hidden layer of 42."""

    name: Literal["lenet5_half"] = "lenet5_half"
    convs = (3, 8, 60)
    hidden = 42


def _lenet_side(side: int) -> int:
    """Side of the map before the third convolution."""
    for _ in range(2):
        side = (side - LENET_KERNEL + 1) // 2
    return side


# AlexNet for 32x32 images (Krizhevsky et al., NeurIPS 2012) and its half, the CIFAR pair of ZSKD. Widths of ZSKD's
# networks (`methods.md` 5.4): convolutions 5x5, 5x5, 3x3, 3x3, 3x3; local response normalisation and 3x3 max pooling
# with stride 2 after the first two, pooling alone after the last; BN after each block and each hidden fully connected
# layer. BN stands last in a block; the constants of the normalisation are Krizhevsky's; no padding in the pooling.


@dataclass(frozen=True, kw_only=True)
class _AlexNet(Network):
    """An AlexNet by the channels of its convolutions and the units of its hidden layers."""

    paper: ClassVar[str] = "Krizhevsky et al., NeurIPS 2012"
    convs: ClassVar[tuple[int, int, int, int, int]]
    hidden: ClassVar[tuple[int, int]]

    @property
    def min_size(self) -> int:
        """Three poolings leave one place of 15."""
        return 15

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return AlexNetModule(self, image_shape, num_classes)


@dataclass(frozen=True, kw_only=True)
class AlexNet(_AlexNet):
    """Convolutions of 48, 128, 192, 192 and 128 channels, then 512 and 256 units; `fc2` names the layer of 256."""

    name: Literal["alexnet"] = "alexnet"
    convs = (48, 128, 192, 192, 128)
    hidden = (512, 256)


@dataclass(frozen=True, kw_only=True)
class AlexNetHalf(_AlexNet):
    """Convolutions of 24, 64, 96, 96 and 64 channels, then 256 and 128 units; `fc2` names the layer of 128."""

    name: Literal["alexnet_half"] = "alexnet_half"
    convs = (24, 64, 96, 96, 64)
    hidden = (256, 128)


class AlexNetModule(nn.Module):
    """`blocks` ("blocks.0" to "blocks.4"), `fc1` and `fc2`, each with ReLU and BN after it, then `classifier`.

    The output of `fc2` is before the ReLU: FC-2 of Wang's soft targets.
    """

    def __init__(self, size: _AlexNet, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        (first, second, third, fourth, fifth), hidden = size.convs, size.hidden
        self.blocks = nn.Sequential(
            _alexnet_block(channels, first, 5, respond=True, pool=True),
            _alexnet_block(first, second, 5, respond=True, pool=True),
            _alexnet_block(second, third, 3),
            _alexnet_block(third, fourth, 3),
            _alexnet_block(fourth, fifth, 3, pool=True),
        )
        rows, columns = map(_alexnet_side, sides)
        self.fc1 = nn.Linear(fifth * rows * columns, hidden[0])
        self.bn1 = nn.BatchNorm1d(hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.bn2 = nn.BatchNorm1d(hidden[1])
        self.classifier = nn.Linear(hidden[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        units = self.bn1(F.relu(self.fc1(self.blocks(images).flatten(1))))
        return self.classifier(self.bn2(F.relu(self.fc2(units))))


def _alexnet_block(inputs: int, outputs: int, kernel: int, *, respond: bool = False, pool: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    if respond:
        # PyTorch divides alpha by the size, the paper does not: 1e-4 there.
        layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    if pool:
        layers.append(nn.MaxPool2d(3, 2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs))


def _alexnet_side(side: int) -> int:
    """Side of the map after the three poolings."""
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


# VGG-11 with batch normalisation (Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556, column A). As the data-free
# literature has it (`peers.md` A.0): five stages of 3x3 convolutions at widths w, 2w, 4w, 8w, 8w with BN, the mean over
# space, one linear layer in place of three. The maps are halved before stages 1 to 3, and before the last one only
# where the image has 64 pixels a side: on CIFAR the last two stages see 4x4 places. He initialisation.


@dataclass(frozen=True, kw_only=True)
class Vgg11(WideNetwork):
    """VGG-11 with BN; the teacher of Fast's and its successors' second CIFAR pair."""

    paper: ClassVar[str] = "Simonyan & Zisserman, ICLR 2015"
    name: Literal["vgg11"] = "vgg11"
    width: int = 64
    """Channels of the first stage; the last two have eight times as many."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return VggModule(image_shape, num_classes, width=self.width)


class VggModule(nn.Module):
    """`stages` (for taps: "stages.0" to "stages.4"), mean over space, `classifier`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, width: int) -> None:
        super().__init__()
        channels, height, width_of_image = image_shape
        self.stages = nn.Sequential(
            _vgg_stage(channels, width, 1, pool=False),
            _vgg_stage(width, 2 * width, 1, pool=True),
            _vgg_stage(2 * width, 4 * width, 2, pool=True),
            _vgg_stage(4 * width, 8 * width, 2, pool=True),
            _vgg_stage(8 * width, 8 * width, 2, pool=min(height, width_of_image) >= 64),
        )
        self.classifier = nn.Linear(8 * width, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        return self.classifier(self.stages(images).mean((2, 3)))


def _vgg_stage(inputs: int, outputs: int, convs: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    for channels in (inputs, *(outputs,) * (convs - 1)):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


# SqueezeNet (Iandola et al., arXiv:1602.07360, table 1, version 1.0). Eight fire modules squeeze by 1x1 convolutions
# and expand by 1x1 and 3x3 ones side by side. Departures: the stem is 3x3 with stride 1 instead of 7x7 with stride 2;
# 2x2 pooling instead of 3x3; a linear layer after the mean over space, which computes what the paper's last 1x1
# convolution would without its ReLU; BN after each convolution, so that the learning rates of the other networks fit.
# He initialisation.

SQUEEZENET_STAGES = ((1, 1, 2), (2, 3, 3, 4), (4,))
"""Squeezed channels of each fire module, in units of the width; pooling before each stage."""


@dataclass(frozen=True, kw_only=True)
class SqueezeNet(WideNetwork):
    """SqueezeNet of any width; the paper's has 16."""

    paper: ClassVar[str] = "Iandola et al., arXiv 1602.07360"
    name: Literal["squeezenet"] = "squeezenet"
    width: int = 16
    """Channels that the first fire module squeezes to; all others in proportion."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return SqueezeNetModule(image_shape[0], num_classes, width=self.width)


class SqueezeNetModule(nn.Module):
    """`conv`, `stages` (for taps: "stages.0" to "stages.2"), mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, width: int) -> None:
        super().__init__()
        outputs = 6 * width
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        stages = []
        for squeezed in SQUEEZENET_STAGES:
            modules: list[nn.Module] = [nn.MaxPool2d(2)]
            for squeeze in squeezed:
                modules.append(Fire(outputs, squeeze * width))
                outputs = 8 * squeeze * width
            stages.append(nn.Sequential(*modules))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(outputs, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        maps = self.stages(F.relu(self.bn(self.conv(images))))
        return self.classifier(maps.mean((2, 3)))


class Fire(nn.Module):
    """Squeeze to `squeeze` channels; expand each way to four times as many."""

    def __init__(self, inputs: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(squeeze)
        self.expand1 = nn.Conv2d(squeeze, 4 * squeeze, 1, bias=False)
        self.expand3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8 * squeeze)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, 8 * squeeze, H, W)."""
        squeezed = F.relu(self.bn1(self.squeeze(maps)))
        return F.relu(self.bn2(torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1)))


# ConvNet of dataset condensation (Zhao et al., ICLR 2021, arXiv:2006.05929; DM, WACV 2023, arXiv:2110.04181): blocks of
# 3x3 convolution, instance normalisation with affine parameters, ReLU and 2x2 average pooling, then one linear layer.
# 28x28 images are padded to 32x32 by the first convolution, as in the official code. PyTorch's own initialisation.


@dataclass(frozen=True, kw_only=True)
class ConvNet(Network):
    """ConvNet-`depth`; the condensation papers use depth 3 and width 128."""

    paper: ClassVar[str] = "Zhao et al., ICLR 2021"
    name: Literal["convnet"] = "convnet"
    depth: int = 3
    """Blocks; each halves the image."""
    width: int = 128
    """Channels of every block."""

    def __post_init__(self) -> None:
        require(1 <= self.depth <= 10, "convnet depth", self.depth, "1 to 10")
        require(self.width >= 1, "convnet width", self.width, "1 or more")

    @property
    def min_size(self) -> int:
        """The last normalisation then sees 2x2 places a channel; of one place the variance would be 0."""
        return 2**self.depth

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ConvNetModule(image_shape, num_classes, depth=self.depth, width=self.width)


class ConvNetModule(nn.Module):
    """`blocks`, then `classifier`. Distribution matching reads `embed`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        padding = 3 if sides == [28, 28] else 1
        first = _convnet_block(channels, width, padding)
        self.blocks = nn.Sequential(first, *(_convnet_block(width, width, 1) for _ in range(depth - 1)))
        rows, columns = ((side + 2 * (padding - 1)) // 2**depth for side in sides)
        self.classifier = nn.Linear(width * rows * columns, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to features (B, D), the flattened map of the last block. Differentiable."""
        return self.blocks(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        return self.classifier(self.embed(images))


def _convnet_block(inputs: int, width: int, padding: int) -> nn.Sequential:
    # One group a channel is instance normalisation.
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=padding),
        nn.GroupNorm(width, width),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )
