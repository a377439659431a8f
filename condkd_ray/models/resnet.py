"""Residual networks for small images (He et al., CVPR 2016, arXiv:1512.03385).

CIFAR-type (section 4.2): three stages of n blocks at widths w, 2w, 4w (depth 6n + 2). ResNet-18 and ResNet-34 (table
1): four stages of basic blocks (figure 2) at widths w, 2w, 4w, 8w. As usual in data-free distillation, a 3x3
convolution with stride 1 replaces their 7x7 stem with stride 2 and its max pooling. Then the mean over space and one
linear layer. The convolutions have He initialisation as in the paper. Our choice: the shortcut of a block that changes
the shape is a 1x1 convolution with BN (the paper's option B). The paper's CIFAR networks pad with zeros (option A);
`ResNet` has both.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import MAX_LAYERS, OPTIONAL, Network, WideNetwork, he_init, stage
from condkd_ray.models.shortcut import PaddedShortcut, Shortcut

Option = Literal["b", "a"]
"""The paper's shortcut options for a block that changes the shape: `b`, a 1x1 convolution and BN; `a`, no weights:
every second position, and zeros for the new channels."""


@dataclass(frozen=True, kw_only=True)
class ResNet(Network):
    """CIFAR-type ResNet of any depth 6n + 2 and width. Its stages are the layers "stages.0" to "stages.2"."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    name: Literal["resnet"] = "resnet"
    shortcut: Option = field(default="b", metadata=OPTIONAL)
    """Shortcut of a block that changes the shape: `b`, a 1x1 convolution with BN; `a`, zeros for the new channels, as
    in the paper's CIFAR networks. On the command line, option `a` is spelled resnet:a-20-16."""
    depth: int = 8
    """Layers with weights: 8, 14, 20, 32, 44, 56, ..."""
    width: int = 16
    """Channels of the first stage; the others have twice and four times as many."""

    def __post_init__(self) -> None:
        require(self.shortcut in get_args(Option), "resnet shortcut", self.shortcut, "b or a, the paper's options")
        deep = 8 <= self.depth <= MAX_LAYERS and self.depth % 6 == 2
        require(deep, "resnet depth", self.depth, f"6n + 2, such as 8, 14, 20, at most {MAX_LAYERS}")
        require(self.width >= 1, "resnet width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        blocks = ((self.depth - 2) // 6,) * 3
        return ResNetModule(image_shape[0], num_classes, blocks=blocks, width=self.width, shortcut=self.shortcut)


@dataclass(frozen=True, kw_only=True)
class _FourStages(WideNetwork):
    """Base class of ResNets with four stages; subclasses set the number of blocks of each stage."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    blocks: ClassVar[tuple[int, int, int, int]]
    width: int = 64
    """Channels of the first stage; the last has eight times as many."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNetModule(image_shape[0], num_classes, blocks=self.blocks, width=self.width)


@dataclass(frozen=True, kw_only=True)
class ResNet18(_FourStages):
    """ResNet-18: two blocks in each of four stages, the layers "stages.0" to "stages.3"."""

    name: Literal["resnet18"] = "resnet18"
    blocks = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class ResNet34(_FourStages):
    """ResNet-34: 3, 4, 6 and 3 blocks in the layers "stages.0" to "stages.3". The usual teacher on CIFAR."""

    name: Literal["resnet34"] = "resnet34"
    blocks = (3, 4, 6, 3)


class ResNetModule(nn.Module):
    """The stem, `stages` (layers "stages.0", "stages.1", ...), mean over space, `classifier`.

    Stage i has `blocks[i]` blocks and `width` * 2^i channels; all but the first stage halve the map.
    """

    def __init__(
        self, channels: int, num_classes: int, *, blocks: tuple[int, ...], width: int, shortcut: Option = "b"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = BatchNorm2d(width)
        first, *later = blocks
        block = partial(Block, option=shortcut)
        stages = [stage(block, width, width, first, 1)]
        for count in later:
            stages.append(stage(block, width, 2 * width, count, 2))
            width *= 2
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(width, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        maps = self.stages(F.relu(self.bn(self.conv(images)), inplace=True))
        return self.classifier(maps.mean((2, 3)))


class Block(nn.Module):
    """Two 3x3 convolutions of `dilation` with BN, added to a shortcut; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: Option = "b", dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.bn1 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if (stride != 1 or inputs != outputs) and option == "a":
            self.shortcut = PaddedShortcut(outputs - inputs, stride)
        elif stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(Shortcut(inputs, outputs, stride), BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)).add_(self.shortcut(maps)), inplace=True)
