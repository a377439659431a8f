"""Base class of the architectures, and building blocks that several of them use.

An architecture is a frozen dataclass that builds a module for an image shape. Letters: B batch, C channels, H W height
and width, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from condkd_ray.core.code_digest import OWN
from condkd_ray.core.environment import free_bytes
from condkd_ray.core.families import is_plugin
from condkd_ray.core.method import Method, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.units import byte_size

MAX_LAYERS = 1202
"""Largest accepted number of layers with weights: that of the deepest network of He et al. (CVPR 2016, section 4.2)."""
ALIKE, REDUCED = {"normal_", "uniform_", "kaiming_uniform_", "normalize", "div"}, {"mv", "vdot"}
"""Names of PyTorch's functions in initialisers and spectral norm: their result has the shape of their first argument,
or that shape without its last dimension."""
Module = TypeVar("Module", bound=nn.Module)
OPTIONAL = {"spelled": "unless default"}
"""Metadata of a word field (see `Network`) that `label` leaves out at its default."""


@dataclass(frozen=True, kw_only=True)
class Network(Method, ABC):
    """Base class of the architectures.

    Besides `name`, a subclass has word fields (texts of `[a-z0-9_]+`), then integer fields, so that `label` can write
    it as one word. Its modules must not contain layers that draw random numbers in training, such as dropout, because
    these would draw from the global generator.
    """

    name: str

    @property
    def min_size(self) -> int:
        """Smallest accepted side of an image, in pixels. At side 8 the last stage still has one position or more."""
        return 8

    @final
    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return a freshly initialised module that maps normalised images (B, C, H, W) to logits.

        For classification they are (B, K), and its last layer is `nn.Linear`. A network whose `tasks` are segmentation
        gives (B, K, H, W), computed by a convolution with K outputs and enlarged to the image. `image_shape` is
        (C, H, W). The weights are drawn from PyTorch's global generator: call `build` inside `Streams.forked`. Raises
        `InputError` if H or W is below `min_size`, or if the weights exceed the free CPU memory.
        """
        _, height, width = image_shape
        side = min(height, width)
        what = f"network {label(self)} on images of {height}x{width}: smallest side"
        require(side >= self.min_size, what, side, f"{self.min_size} or more")
        # On the meta device, where callers count costs, weights take no memory. A plug-in is built only once, because
        # it may keep a tensor of its first module for later ones.
        if torch.get_default_device().type != "meta" and not is_plugin(type(self)):
            _check_memory(_network_bytes(self, tuple(image_shape), num_classes), label(self))
        return self._build(image_shape, num_classes)

    @abstractmethod
    def _build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Build the module for an image shape that `build` has checked."""


@dataclass(frozen=True, kw_only=True)
class WideNetwork(Network):
    """Base class of architectures with the fields `name` and `width` only, which halve images.

    They halve an image of less than 64 pixels at most 3 times.
    """

    width: int
    """Number of channels, or a factor of it; the subclass documents which."""
    accepted_width: ClassVar[str] = "1 or more"

    def __post_init__(self) -> None:
        require(self.width >= 1, f"{self.name} width", self.width, self.accepted_width)


def label(network: Network) -> str:
    """Return the command-line spelling: name, words after colons, integers after dashes, in the order of the fields.

    Examples: "resnet-8-16", "torchvision:resnet50". A word that is `OPTIONAL` and at its default is left out.
    """
    given = {field: getattr(network, field.name) for field in fields(network)}
    values = [value for field, value in given.items() if field.metadata != OPTIONAL or value != field.default]
    words = [value for value in values if isinstance(value, str)]
    return "-".join([":".join(words), *(str(value) for value in values if not isinstance(value, str))])


def stage(block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, count: int, stride: int) -> nn.Module:
    """Return `count` blocks in sequence, each built by `block(inputs, outputs, stride)`.

    Only the first block changes the number of channels and has the stride; the others have stride 1.
    """
    rest = [block(outputs, outputs, 1) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)


class _ShapesAlone(TorchFunctionMode):
    """Makes tensors of `torch.empty`, `zeros` and `ones` on the meta device, and computes no initial values of them.

    `torch.device("meta")` is not used: under it PyTorch's initialisers import packages, which takes a second although
    nothing is drawn, and torchvision's `regnet` models fail, because they compute their widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func in (torch.empty, torch.zeros, torch.ones):
            return func(*args, **kwargs | {"device": "meta"})
        first = args[0] if args else kwargs.get("tensor")
        if name in ALIKE | REDUCED and isinstance(first, torch.Tensor) and first.is_meta:
            return first if name in ALIKE else first.select(-1, 0)
        return func(*args, **kwargs)


def _weight_bytes(make: Callable[[], nn.Module]) -> float:
    """Return the bytes of the parameters of the module that `make` builds; infinity if a tensor cannot be that large.

    Takes milliseconds: PyTorch's layers allocate and draw nothing. Returns 0 for a module that cannot be made without
    values, such as one whose constructor reads its weights.
    """
    try:
        with torch.random.fork_rng(devices=[]), _ShapesAlone():
            return float(sum(tensor.nbytes for tensor in make().parameters()))
    except Exception as error:  # any constructor; building the module raises the error again
        too_large = isinstance(error, OverflowError) or "overflow" in str(error).lower()
        return math.inf if too_large else 0.0


@cache  # a condensation builds the same network thousands of times
def _network_bytes(network: Network, image_shape: tuple[int, int, int], num_classes: int) -> float:
    return _weight_bytes(lambda: network._build(image_shape, num_classes))


def _check_memory(needed: float, what: str) -> None:
    free = free_bytes(torch.device("cpu"))
    accepted = f"less than the {byte_size(free)} that are free"
    require(needed < free, f"memory for the weights of {what}", byte_size(needed), accepted)


def seeded_module(make: Callable[[], Module], stream: str, device: torch.device, rng: Streams) -> Module:
    """Return the module that `make` builds with random numbers of `stream`, on `device`, in channels-last format.

    `stream`: a name such as "init/generator" or "init/generator/3"; a message names the second part.
    Raises `InputError` if its weights exceed the free memory; a function of another package is not checked.
    """
    # A plug-in is built only once: see `Network.build`.
    if (getattr(make, "__module__", None) or "").partition(".")[0] == OWN:
        _check_memory(_weight_bytes(make), stream.removeprefix("init/").partition("/")[0])
    with rng.forked(stream):
        module = make()
    return module.to(device, non_blocking=True, memory_format=torch.channels_last)  # type: ignore[call-overload]


def he_init(network: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. (ICCV 2015, arXiv:1502.01852), by fan-out; biases are kept."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
