"""What an architecture is: a frozen dataclass that builds a module for a given image shape; parts that several share.

Letters: B batch, C channels, H W height and width, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar, final

import torch
from torch import nn

from condkd_ray.core.environment import free_bytes
from condkd_ray.core.method import Method, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.units import byte_size

DEEPEST = 1202
"""Layers with weights, at most: the deepest network of He et al. (CVPR 2016, section 4.2)."""
LARGE = 256
"""Up to this depth and width the weights of every architecture fit any machine (our choice). PyTorch takes a second to
import what it needs for the first tensors without values."""
Module = TypeVar("Module", bound=nn.Module)
OPTIONAL = {"spelled": "unless default"}
"""Metadata of a field of words that `label` leaves out at its default."""


@dataclass(frozen=True, kw_only=True)
class Network(Method, ABC):
    """Base of the architectures.

    Besides `name` a subclass has fields of words (`[a-z0-9_]+`), then of whole numbers, so that `label` can spell it.
    Layers that draw when they train, such as dropout, are left out: they would draw from the global generator.
    """

    name: str

    @property
    def min_size(self) -> int:
        """Smallest side of an image it can read, in pixels; of 8 the last stage still has a place or more."""
        return 8

    @final
    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module from normalised images (B, C, H, W) to logits (B, K), ending in `nn.Linear`.

        Draws from PyTorch's global generator: call it inside `Streams.forked`. `image_shape` is (C, H, W). Raises
        `InputError` where H or W is below `min_size`, or where the weights do not fit the free memory.
        """
        _, height, width = image_shape
        side = min(height, width)
        what = f"network {label(self)} on images of {height}x{width}: smallest side"
        require(side >= self.min_size, what, side, f"{self.min_size} or more")
        if any(isinstance(value, int) and value > LARGE for value in vars(self).values()):
            self._check_memory(image_shape, num_classes)
        return self._build(image_shape, num_classes)

    def _check_memory(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        free = free_bytes(torch.device("cpu"))
        needed, accepted = self._bytes(image_shape, num_classes), f"less than the {byte_size(free)} that are free"
        require(needed < free, f"memory for the weights of {label(self)}", byte_size(needed), accepted)

    def _bytes(self, image_shape: tuple[int, int, int], num_classes: int) -> float:
        """What the weights take, in float32. On the device `meta` tensors have no values: nothing is drawn either."""
        try:
            with torch.device("meta"):
                return 4.0 * sum(tensor.numel() for tensor in self._build(image_shape, num_classes).parameters())
        except (RuntimeError, TypeError, OverflowError):
            # More than a tensor can be.
            return math.inf

    @abstractmethod
    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """`build` for a shape that is large enough."""


@dataclass(frozen=True, kw_only=True)
class WideNetwork(Network):
    """Base of the architectures whose only field is a width, and which halve the image three times at most."""

    width: int
    accepted_width: ClassVar[str] = "1 or more"

    def __post_init__(self) -> None:
        require(self.width >= 1, f"{self.name} width", self.width, self.accepted_width)


def label(network: Network) -> str:
    """The command-line spelling: the name, words after colons, numbers after dashes, all in the order of the fields.

    Such as "resnet-8-16" or "torchvision:resnet50". A word that is `OPTIONAL` and at its default is left out.
    """
    given = {field: getattr(network, field.name) for field in fields(network)}
    values = [value for field, value in given.items() if field.metadata != OPTIONAL or value != field.default]
    words = [value for value in values if isinstance(value, str)]
    return "-".join([":".join(words), *(str(value) for value in values if not isinstance(value, str))])


def stage(block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, count: int, stride: int) -> nn.Module:
    """`count` blocks, each made from (inputs, outputs, stride); the first alone changes the channels and strides."""
    rest = [block(outputs, outputs, 1) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def drawn(make: Callable[[], Module], stream: str, device: torch.device, rng: Streams) -> Module:
    """The module that `make` builds with the draws of `stream`, on `device`, in channels-last format."""
    with rng.forked(stream):
        module = make()
    return module.to(device, non_blocking=True, memory_format=torch.channels_last)  # type: ignore[call-overload]


def he_init(network: nn.Module) -> None:
    """He initialisation, by fan-out, of all convolutions (He et al., ICCV 2015, arXiv:1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
