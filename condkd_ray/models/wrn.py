"""Wide residual network (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146), without dropout.

WRN-d-k as used in data-free distillation: pre-activation blocks, a stem of 16 channels, three stages of
(d - 4) / 6 blocks at widths 16k, 32k, 64k. He initialisation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import MAX_LAYERS, Network, he_init, stage
from condkd_ray.models.shortcut import Shortcut

STEM = 16


@dataclass(frozen=True, kw_only=True)
class Wrn(Network):
    """WRN-`depth`-`width`; the papers' teacher is wrn-40-2, their students wrn-16-1, wrn-40-1 and wrn-16-2."""

    paper: ClassVar[str] = "Zagoruyko & Komodakis, BMVC 2016"
    name: Literal["wrn"] = "wrn"
    depth: int = 16
    """Layers with weights, 6n + 4: 10, 16, 22, 28, 40, ..."""
    width: int = 1
    """The widening factor k: the stages have 16k, 32k and 64k channels."""

    def __post_init__(self) -> None:
        deep = 10 <= self.depth <= MAX_LAYERS and self.depth % 6 == 4
        require(deep, "wrn depth", self.depth, f"6n + 4, such as 10, 16, 40, at most {MAX_LAYERS}")
        require(self.width >= 1, "wrn width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return WrnModule(image_shape[0], num_classes, blocks=(self.depth - 4) // 6, width=self.width)


class WrnModule(nn.Module):
    """The stem, `stages` (layers "stages.0" to "stages.2"), a last BN and ReLU, mean over space, `classifier`."""

    def __init__(self, channels: int, num_classes: int, *, blocks: int, width: int) -> None:
        super().__init__()
        first = STEM * width
        self.conv = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            stage(PreActivationBlock, STEM, first, blocks, 1),
            stage(PreActivationBlock, first, 2 * first, blocks, 2),
            stage(PreActivationBlock, 2 * first, 4 * first, blocks, 2),
        )
        self.bn = BatchNorm2d(4 * first)
        self.classifier = nn.Linear(4 * first, num_classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        maps = F.relu(self.bn(self.stages(self.conv(images))), inplace=True)
        return self.classifier(maps.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """BN and ReLU before each of two 3x3 convolutions; no ReLU after the sum.

    If the shape changes, the shortcut is a 1x1 convolution of the output of the first BN and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Shortcut(inputs, outputs, stride) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        active = F.relu(self.bn1(maps), inplace=True)
        inner = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return inner.add_(maps if self.shortcut is None else self.shortcut(active))
