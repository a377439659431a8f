"""SqueezeNet (Iandola et al., arXiv:1602.07360, table 1, version 1.0).

Eight fire modules: 1x1 convolutions squeeze the channels, parallel 1x1 and 3x3 convolutions expand them. Our choice:
the stem is 3x3 with stride 1 instead of 7x7 with stride 2; pooling is 2x2 instead of 3x3; a linear layer follows the
mean over space, equivalent to the paper's last 1x1 convolution without its ReLU; BN follows each convolution, so that
the learning rates of the other networks fit. He initialisation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import WideNetwork, he_init

STAGES = ((1, 1, 2), (2, 3, 3, 4), (4,))
"""Squeezed channels of each fire module, in units of the width, by stage; a pooling precedes each stage."""


@dataclass(frozen=True, kw_only=True)
class SqueezeNet(WideNetwork):
    """SqueezeNet with a width; the paper's network has 16."""

    paper: ClassVar[str] = "Iandola et al., arXiv 1602.07360"
    name: Literal["squeezenet"] = "squeezenet"
    width: int = 16
    """Squeezed channels of the first fire module; all other channels are in proportion."""

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return SqueezeNetModule(image_shape[0], num_classes, width=self.width)


class SqueezeNetModule(nn.Module):
    """The modules `conv`, `stages` (layers "stages.0" to "stages.2"), mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, width: int) -> None:
        super().__init__()
        outputs = 6 * width
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.bn = BatchNorm2d(outputs)
        stages = []
        for squeezed in STAGES:
            modules: list[nn.Module] = [nn.MaxPool2d(2)]
            for squeeze in squeezed:
                modules.append(Fire(outputs, squeeze * width))
                outputs = 8 * squeeze * width
            stages.append(nn.Sequential(*modules))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(outputs, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        maps = self.stages(F.relu(self.bn(self.conv(images)), inplace=True))
        return self.classifier(maps.mean((2, 3)))


class Fire(nn.Module):
    """Squeezes to `squeeze` channels, then expands to four times as many by each of the two convolutions."""

    def __init__(self, inputs: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1, bias=False)
        self.bn1 = BatchNorm2d(squeeze)
        self.expand1 = nn.Conv2d(squeeze, 4 * squeeze, 1, bias=False)
        self.expand3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(8 * squeeze)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, 8 * squeeze, H, W) of (B, inputs, H, W)."""
        squeezed = F.relu(self.bn1(self.squeeze(maps)), inplace=True)
        expanded = torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1)
        return F.relu(self.bn2(expanded), inplace=True)
