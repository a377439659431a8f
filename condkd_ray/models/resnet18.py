"""ResNet-18 and ResNet-34 for small images (He et al., CVPR 2016, arXiv:1512.03385, table 1).

Four stages of basic blocks at widths w, 2w, 4w, 8w. As everywhere in the data-free literature (`methods.md` 2.2,
`peers.md` A.0) the 7x7 stem with stride 2 and the max-pool after it are a 3x3 convolution with stride 1 instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network
from condkd_ray.models.residual import ResNetModule


@dataclass(frozen=True, kw_only=True)
class ResNet18(Network):
    """Two blocks in each of four stages. Taps: "stages.0" to "stages.3"."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    name: Literal["resnet18"] = "resnet18"
    width: int = 64
    """Channels of the first stage; the last has eight times as many."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "resnet18 width", self.width, "1 or more")

    @property
    def min_size(self) -> int:
        """Three halvings leave one place of 8."""
        return 8

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNetModule(image_shape[0], num_classes, blocks=(2, 2, 2, 2), width=self.width)


@dataclass(frozen=True, kw_only=True)
class ResNet34(Network):
    """3, 4, 6 and 3 blocks in four stages, the usual teacher of CIFAR. Taps: "stages.0" to "stages.3"."""

    paper: ClassVar[str] = "He et al., CVPR 2016"
    name: Literal["resnet34"] = "resnet34"
    width: int = 64
    """Channels of the first stage; the last has eight times as many."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "resnet34 width", self.width, "1 or more")

    @property
    def min_size(self) -> int:
        """Three halvings leave one place of 8."""
        return 8

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return ResNetModule(image_shape[0], num_classes, blocks=(3, 4, 6, 3), width=self.width)
