"""AlexNet for 32x32 images (Krizhevsky et al., NeurIPS 2012) and its half-width student, the CIFAR pair of ZSKD.

Widths as in ZSKD (Nayak et al., ICML 2019): convolutions 5x5, 5x5, 3x3, 3x3, 3x3; local response normalisation and
3x3 max pooling with stride 2 after the first two, pooling alone after the last; BN after each block and each hidden
fully connected layer. Our choice: BN is the last layer of a block; the constants of the normalisation are Krizhevsky's;
the pooling has no padding.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.models.batch_norm import BatchNorm2d
from condkd_ray.models.network import Network


@dataclass(frozen=True, kw_only=True)
class _Size(Network):
    """Base class of both AlexNets; subclasses set the channels of the convolutions and the units of hidden layers."""

    paper: ClassVar[str] = "Krizhevsky et al., NeurIPS 2012"
    convs: ClassVar[tuple[int, int, int, int, int]]
    hidden: ClassVar[tuple[int, int]]

    @property
    def min_size(self) -> int:
        """15: the three poolings leave one position."""
        return 15

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return AlexNetModule(self, image_shape, num_classes)


@dataclass(frozen=True, kw_only=True)
class AlexNet(_Size):
    """AlexNet: 48, 128, 192, 192 and 128 channels, then 512 and 256 units; `fc2` is the layer with 256 units."""

    name: Literal["alexnet"] = "alexnet"
    convs = (48, 128, 192, 192, 128)
    hidden = (512, 256)


@dataclass(frozen=True, kw_only=True)
class AlexNetHalf(_Size):
    """Half AlexNet: 24, 64, 96, 96 and 64 channels, then 256 and 128 units; `fc2` is the layer with 128 units."""

    name: Literal["alexnet_half"] = "alexnet_half"
    convs = (24, 64, 96, 96, 64)
    hidden = (256, 128)


class AlexNetModule(nn.Module):
    """The modules `blocks` ("blocks.0" to "blocks.4"), `fc1` and `fc2`, each followed by ReLU and BN, `classifier`.

    The output of `fc2` is taken before the ReLU: it is FC-2 in Wang's soft targets.
    """

    def __init__(self, size: _Size, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        (first, second, third, fourth, fifth), hidden = size.convs, size.hidden
        self.blocks = nn.Sequential(
            _block(channels, first, 5, normalise=True, pool=True),
            _block(first, second, 5, normalise=True, pool=True),
            _block(second, third, 3),
            _block(third, fourth, 3),
            _block(fourth, fifth, 3, pool=True),
        )
        rows, columns = map(_side, sides)
        self.fc1 = nn.Linear(fifth * rows * columns, hidden[0])
        self.bn1 = nn.BatchNorm1d(hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.bn2 = nn.BatchNorm1d(hidden[1])
        self.classifier = nn.Linear(hidden[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        units = self.bn1(F.relu(self.fc1(self.blocks(images).flatten(1))))
        return self.classifier(self.bn2(F.relu(self.fc2(units))))


def _block(inputs: int, outputs: int, kernel: int, *, normalise: bool = False, pool: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    if normalise:
        # PyTorch divides alpha by the size, the paper does not: its alpha is 1e-4.
        layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    if pool:
        layers.append(nn.MaxPool2d(3, 2))
    return nn.Sequential(*layers, BatchNorm2d(outputs))


def _side(side: int) -> int:
    """Return the side of the map after the three poolings."""
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side
