"""Residual network for small images (He et al., CVPR 2016, arXiv:1512.03385, section 4.2).

Three stages of n blocks at widths w, 2w, 4w (depth 6n + 2), global average pool, one linear layer. He initialisation
of the convolutions as in the paper. Our choice: where a block changes shape its shortcut is a 1x1 convolution with BN
(the paper's option B; its own CIFAR nets pad with zeros, option A).

Letters: B batch, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.method import require
from condkd_ray.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class ResNet(Network):
    """CIFAR-type ResNet of any depth 6n + 2 and width."""

    name: Literal["resnet"] = "resnet"
    depth: int = 8
    """Layers with weights: 8, 14, 20, 32, 44, 56, ..."""
    width: int = 16
    """Channels of the first stage; the others have twice and four times as many."""

    def __post_init__(self) -> None:
        require(self.depth >= 8 and self.depth % 6 == 2, "resnet depth", self.depth, "6n + 2, such as 8, 14, 20")
        require(self.width >= 1, "resnet width", self.width, "1 or more")

    @property
    def min_size(self) -> int:
        """The last stage of an 8x8 image still has 2x2 places."""
        return 8

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNetModule(image_shape[0], num_classes, blocks=(self.depth - 2) // 6, width=self.width)


class ResNetModule(nn.Module):
    """Stem, `stages` (for taps: "stages.0" to "stages.2"), `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, blocks: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            _stage(width, width, blocks, stride=1),
            _stage(width, 2 * width, blocks, stride=2),
            _stage(2 * width, 4 * width, blocks, stride=2),
        )
        self.classifier = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        maps = self.stages(F.relu(self.bn(self.conv(images))))
        return self.classifier(maps.mean((2, 3)))


class Block(nn.Module):
    """Two 3x3 convolutions with BN beside a shortcut; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)
