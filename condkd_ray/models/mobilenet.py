"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381, table 2).

Stages of inverted residuals: a 1x1 convolution expands the channels, a depthwise 3x3 convolution filters them, and a
1x1 convolution without non-linearity projects them. Our choice, usual on CIFAR: the stem and the second stage have
stride 1 instead of 2, so that the last map of 32x32 images is 4x4. He initialisation.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import WideNetwork, he_init, stage

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage."""
STEM, HEAD = 32, 1280


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(WideNetwork):
    """MobileNetV2 with a width multiplier."""

    paper: ClassVar[str] = "Sandler et al., CVPR 2018"
    accepted_width: ClassVar[str] = "1 or more, in percent"
    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: int = 100
    """The paper's width multiplier in percent. Channels are rounded to multiples of 8; below 100 the last convolution
    still has 1280 channels."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return MobileNetV2Module(image_shape[0], num_classes, width=self.width)


class MobileNetV2Module(nn.Module):
    """The modules `stem`, `stages` (layers "stages.0" to "stages.6"), `head`, mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, width: int) -> None:
        super().__init__()
        outputs = rounded(STEM, width)
        self.stem = nn.Sequential(*_filtered(channels, outputs, 3))
        stages = []
        for expansion, base, blocks, stride in STAGES:
            inputs, outputs = outputs, rounded(base, width)
            stages.append(stage(partial(InvertedResidual, expansion=expansion), inputs, outputs, blocks, stride))
        self.stages = nn.Sequential(*stages)
        features = rounded(HEAD, max(width, 100))
        self.head = nn.Sequential(*_filtered(outputs, features, 1))
        self.classifier = nn.Linear(features, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.classifier(self.head(self.stages(self.stem(images))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expands, filters and projects; the input is added to the result if the shapes are equal."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, expansion: int, dilation: int = 1) -> None:
        super().__init__()
        inner = expansion * inputs
        self.branch = nn.Sequential(
            *(_filtered(inputs, inner, 1) if expansion != 1 else ()),
            *_filtered(inner, inner, 3, stride=stride, groups=inner, dilation=dilation),
            nn.Conv2d(inner, outputs, 1, bias=False),
            BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        branch = self.branch(maps)
        return maps + branch if self.adds else branch


def rounded(channels: int, percent: int) -> int:
    """Return `percent` of `channels`, rounded to a multiple of 8, at least 8; up if a tenth would be lost."""
    exact = channels * percent / 100
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * exact else nearest + 8


def _filtered(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, dilation: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    return [convolution, BatchNorm2d(outputs), nn.ReLU6(inplace=True)]
