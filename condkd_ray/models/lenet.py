"""LeNet-5 (LeCun et al., Proc. IEEE 1998) and its half-width student, the MNIST pair of the data-free literature.

Departures from the paper, all our choice and usual in this field: ReLU instead of squashing functions, max pooling
instead of trained subsampling, full connection between the first two convolutions, a linear output layer. It has no
batch normalisation, so methods that need BN statistics cannot use it. The layer of 84 (42) units is named "fc2": its
output before the ReLU is FC-2 in Wang's soft targets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from condkd_ray.models.network import Network

KERNEL = 5


@dataclass(frozen=True, kw_only=True)
class _Size(Network):
    """Base class of both LeNets; subclasses set the channels of the convolutions and the units of the hidden layer."""

    paper: ClassVar[str] = "LeCun et al., Proc. IEEE 1998"
    convs: ClassVar[tuple[int, int, int]]
    hidden: ClassVar[int]

    @property
    def min_size(self) -> int:
        """16: two 5x5 convolutions, each followed by halving, leave one position."""
        return 16

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels, *sides = image_shape
        first, second, third = self.convs
        layers = [
            *(nn.Conv2d(channels, first, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            # The kernel covers the remaining map: 5x5 for 32x32 images as in the paper, 4x4 for 28x28.
            *(nn.Conv2d(second, third, (_side(sides[0]), _side(sides[1]))), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(third, self.hidden), nn.ReLU(), nn.Linear(self.hidden, num_classes)),
        ]
        named = [(str(index), layer) for index, layer in enumerate(layers)]
        # A name for the hidden layer's output. Renaming the layer itself would make earlier weight files unreadable.
        named.insert(10, ("fc2", nn.Identity()))
        return nn.Sequential(OrderedDict(named))


@dataclass(frozen=True, kw_only=True)
class LeNet5(_Size):
    """LeNet-5: convolutions with 6, 16 and 120 channels, a hidden layer with 84 units."""

    name: Literal["lenet5"] = "lenet5"
    convs = (6, 16, 120)
    hidden = 84


@dataclass(frozen=True, kw_only=True)
class LeNet5Half(_Size):
    """Half LeNet-5: convolutions with 3, 8 and 60 channels, a hidden layer with 42 units."""

    name: Literal["lenet5_half"] = "lenet5_half"
    convs = (3, 8, 60)
    hidden = 42


def _side(side: int) -> int:
    """Return the side of the map before the third convolution."""
    for _ in range(2):
        side = (side - KERNEL + 1) // 2
    return side
