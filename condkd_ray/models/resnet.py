"""Residual network for small images (He et al., CVPR 2016, arXiv:1512.03385, section 4.2).

Three stages of n blocks at widths w, 2w, 4w (depth 6n + 2), global average pool, one linear layer. He initialisation
of the convolutions as in the paper. Our choice: the shortcuts of `Block`; the paper's own CIFAR nets pad with zeros,
option A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network
from condkd_ray.models.residual import ResNetModule


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

    @property
    def min_size(self) -> int:
        """The last stage of an 8x8 image still has 2x2 places."""
        return 8

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        blocks = ((self.depth - 2) // 6,) * 3
        return ResNetModule(image_shape[0], num_classes, blocks=blocks, width=self.width)
