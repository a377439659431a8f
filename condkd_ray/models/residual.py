"""Residual networks for small images: a few stages of blocks with shortcuts, the mean over space, one linear layer.

He initialisation of the convolutions. Letters: B batch, C channels, H W height and width, K classes.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network, WideNetwork, he_init, stage

# He et al., CVPR 2016, arXiv:1512.03385. CIFAR-type (section 4.2): three stages of n blocks at widths w, 2w, 4w (depth
# 6n + 2). ResNet-18 and ResNet-34 (table 1): four stages of basic blocks (figure 2) at widths w, 2w, 4w, 8w; as
# everywhere in the data-free literature (`methods.md` 2.2, `peers.md` A.0) the 7x7 stem with stride 2 and the max-pool
# after it are a 3x3 convolution with stride 1 instead. Our choice: where a block changes shape its shortcut is a 1x1
# convolution with BN (the paper's option B; its own CIFAR nets pad with zeros, option A).


@dataclass(frozen=True, kw_only=True)
class ResNet(Network):
    """CIFAR-type ResNet of any depth 6n + 2 and width. Taps: "stages.0" to "stages.2"."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    name: Literal["resnet"] = "resnet"
    depth: int = 8
    """Layers with weights: 8, 14, 20, 32, 44, 56, ..."""
    width: int = 16
    """Channels of the first stage; the others have twice and four times as many."""

    def __post_init__(self) -> None:
        require(self.depth >= 8 and self.depth % 6 == 2, "resnet depth", self.depth, "6n + 2, such as 8, 14, 20")
        require(self.width >= 1, "resnet width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        blocks = ((self.depth - 2) // 6,) * 3
        return ResNetModule(image_shape[0], num_classes, blocks=blocks, width=self.width)


@dataclass(frozen=True, kw_only=True)
class _FourStages(WideNetwork):
    """A ResNet by the blocks in each of its stages."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    blocks: ClassVar[tuple[int, int, int, int]]
    width: int = 64
    """Channels of the first stage; the last has eight times as many."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNetModule(image_shape[0], num_classes, blocks=self.blocks, width=self.width)


@dataclass(frozen=True, kw_only=True)
class ResNet18(_FourStages):
    """Two blocks in each of four stages. Taps: "stages.0" to "stages.3"."""

    name: Literal["resnet18"] = "resnet18"
    blocks = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class ResNet34(_FourStages):
    """3, 4, 6 and 3 blocks in four stages, the usual teacher of CIFAR. Taps: "stages.0" to "stages.3"."""

    name: Literal["resnet34"] = "resnet34"
    blocks = (3, 4, 6, 3)


class ResNetModule(nn.Module):
    """Stem, `stages` (for taps: "stages.0", "stages.1", ...), mean over space, `classifier`.

    `blocks[i]` blocks make stage i; it has `width` times 2 to the i channels, and all but the first halve the map.
    """

    def __init__(self, channels: int, num_classes: int, *, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        first, *later = blocks
        stages = [stage(Block, width, width, first, 1)]
        for count in later:
            stages.append(stage(Block, width, 2 * width, count, 2))
            width *= 2
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(width, num_classes)
        he_init(self)

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
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


# Wide residual network (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146), without dropout. WRN-d-k as in the
# data-free literature (`peers.md` A.0): pre-activation blocks, a stem of 16 channels, three stages of (d - 4) / 6
# blocks at widths 16k, 32k, 64k.

WRN_STEM = 16


@dataclass(frozen=True, kw_only=True)
class Wrn(Network):
    """WRN-`depth`-`width`; the papers' teacher is wrn-40-2, their students wrn-16-1, wrn-40-1 and wrn-16-2."""

    paper: ClassVar[str] = "Zagoruyko & Komodakis, BMVC 2016"
    name: Literal["wrn"] = "wrn"
    depth: int = 16
    """6n + 4: 10, 16, 22, 28, 40, ..."""
    width: int = 1
    """The widening factor k: the stages have 16k, 32k and 64k channels."""

    def __post_init__(self) -> None:
        require(self.depth >= 10 and self.depth % 6 == 4, "wrn depth", self.depth, "6n + 4, such as 10, 16, 40")
        require(self.width >= 1, "wrn width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return WrnModule(image_shape[0], num_classes, blocks=(self.depth - 4) // 6, width=self.width)


class WrnModule(nn.Module):
    """Stem, `stages` (for taps: "stages.0" to "stages.2"), a last BN and ReLU, mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, blocks: int, width: int) -> None:
        super().__init__()
        first = WRN_STEM * width
        self.conv = nn.Conv2d(channels, WRN_STEM, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            stage(PreActivationBlock, WRN_STEM, first, blocks, 1),
            stage(PreActivationBlock, first, 2 * first, blocks, 2),
            stage(PreActivationBlock, 2 * first, 4 * first, blocks, 2),
        )
        self.bn = nn.BatchNorm2d(4 * first)
        self.classifier = nn.Linear(4 * first, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        maps = F.relu(self.bn(self.stages(self.conv(images))))
        return self.classifier(maps.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """BN and ReLU before each of two 3x3 convolutions; nothing after the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of what the first BN and ReLU gave.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(maps))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return inner + (maps if self.shortcut is None else self.shortcut(active))


# MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381, table 2). Stages of inverted residuals: expand by 1x1,
# filter each channel by 3x3, project by 1x1 without a non-linearity. Our choice, and usual on CIFAR: the stem and the
# second stage have stride 1 where the paper has 2, so that 32x32 images end at 4x4.

INVERTED = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride."""
MOBILENET_STEM, MOBILENET_HEAD = 32, 1280


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(WideNetwork):
    """MobileNetV2 of any width."""

    paper: ClassVar[str] = "Sandler et al., CVPR 2018"
    accepted_width: ClassVar[str] = "1 or more, in percent"
    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: int = 100
    """The paper's width multiplier in percent. Channels are rounded to multiples of 8; below 100 the last convolution
    keeps its 1280."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return MobileNetV2Module(image_shape[0], num_classes, width=self.width)


class MobileNetV2Module(nn.Module):
    """`stem`, `stages` (for taps: "stages.0" to "stages.6"), `head`, mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, width: int) -> None:
        super().__init__()
        outputs = rounded(MOBILENET_STEM, width)
        self.stem = nn.Sequential(*_filtered(channels, outputs, 3))
        stages = []
        for expansion, base, blocks, stride in INVERTED:
            inputs, outputs = outputs, rounded(base, width)
            stages.append(stage(partial(InvertedResidual, expansion=expansion), inputs, outputs, blocks, stride))
        self.stages = nn.Sequential(*stages)
        features = rounded(MOBILENET_HEAD, max(width, 100))
        self.head = nn.Sequential(*_filtered(outputs, features, 1))
        self.classifier = nn.Linear(features, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        return self.classifier(self.head(self.stages(self.stem(images))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, filter, project; added to what came in where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.branch = nn.Sequential(
            *(_filtered(inputs, inner, 1) if expansion != 1 else ()),
            *_filtered(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        branch = self.branch(maps)
        return maps + branch if self.adds else branch


def rounded(channels: int, percent: int) -> int:
    """`percent` of `channels`: the nearest multiple of 8, at least 8, the next one where a tenth would be lost."""
    exact = channels * percent / 100
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * exact else nearest + 8


def _filtered(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]
