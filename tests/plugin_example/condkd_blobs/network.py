"""A network. On a command line, its name and fields are one word, here `tiny-8`."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from condkd_ray.core.method import require
from condkd_ray.models.network import Network


class TinyModule(nn.Module):
    """Two stages and a linear layer, which must be the last module."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(_stage(channels, width), _stage(width, 2 * width))
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images):
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.classifier(self.stages(images).mean((2, 3)))


@dataclass(frozen=True, kw_only=True)
class Tiny(Network):
    """Two convolutions with batch normalisation, each of which halves the image."""

    name: Literal["tiny"] = "tiny"
    width: int = 8
    """Number of output channels of the first convolution."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "tiny width", self.width, "1 or more")

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return TinyModule(image_shape[0], self.width, num_classes)


def _stage(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
