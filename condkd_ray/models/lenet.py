"""LeNet-5 (LeCun et al., Proc. IEEE 1998) and its half-width student, the MNIST pair of the data-free literature.

Departures, all our choice and those usual in this field: ReLU for the squashing functions, max pooling for the trained
subsampling, full connection between the first two convolutions, a linear output layer. No batch normalisation, so
methods that need its statistics cannot use it. The layer of 84 (42) units is called "fc2" among layers: FC-2 of Wang's
soft targets, before its ReLU.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from condkd_ray.models.network import Network

KERNEL = 5


@dataclass(frozen=True, kw_only=True)
class _Size(Network):
    """A LeNet by the channels of its convolutions and the units of its hidden layer."""

    paper: ClassVar[str] = "LeCun et al., Proc. IEEE 1998"
    convs: ClassVar[tuple[int, int, int]]
    hidden: ClassVar[int]

    @property
    def min_size(self) -> int:
        """Two rounds of 5x5 convolution and halving leave one pixel of 16."""
        return 16

    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels, *sides = image_shape
        first, second, third = self.convs
        layers = [
            *(nn.Conv2d(channels, first, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            # It covers the map that remains: 5x5 of 32x32 images as in the paper, 4x4 of 28x28.
            *(nn.Conv2d(second, third, (_side(sides[0]), _side(sides[1]))), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(third, self.hidden), nn.ReLU(), nn.Linear(self.hidden, num_classes)),
        ]
        named = [(str(index), layer) for index, layer in enumerate(layers)]
        # A name for what the hidden layer gives. Renaming the layer itself would make weights saved before unreadable.
        named.insert(10, ("fc2", nn.Identity()))
        return nn.Sequential(OrderedDict(named))


@dataclass(frozen=True, kw_only=True)
class LeNet5(_Size):
    """Convolutions of 6, 16 and 120 channels, a hidden layer of 84."""

    name: Literal["lenet5"] = "lenet5"
    convs = (6, 16, 120)
    hidden = 84


@dataclass(frozen=True, kw_only=True)
class LeNet5Half(_Size):
    """Convolutions of 3, 8 and 60 channels, a hidden layer of 42."""

    name: Literal["lenet5_half"] = "lenet5_half"
    convs = (3, 8, 60)
    hidden = 42


def _side(side: int) -> int:
    """Side of the map before the third convolution."""
    for _ in range(2):
        side = (side - KERNEL + 1) // 2
    return side
