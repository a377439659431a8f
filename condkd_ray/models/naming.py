"""Parameter names of public projects, translated to the names of this package's networks.

A scheme translates by name, never by shape: shapes cannot distinguish the tensors of batch normalisation. Only projects
whose network computes the same function as ours are listed. Left out, because names or function differ: bottleneck
ResNets, pre-activation ResNets, ResNets with a wider second stage (`resnet8x4`), the VGGs of pytorch-cifar and
pytorch-cifar-models (other poolings or classifiers), every MobileNetV2 (the same names stand for other strides).

The names are those in the source code of akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar,
chenyaofo/pytorch-cifar-models, zju-vipa/CMI, zju-vipa/Fast-Datafree, tmtuan1307/NAYER (whose networks come from
HobbitLong/RepDistiller, polo5's repositories and DAFL), torchvision, and huggingface/pytorch-image-models (timm).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.models import AnyNetwork, LeNet5, LeNet5Half, ResNet, ResNet18, ResNet34, Torchvision, Vgg11, Wrn
from condkd_ray.models.state_dicts import Weights

Rules = tuple[tuple[str, str], ...]
"""Pairs of a pattern for a whole name and our name. `{1}` in our name is group 1; `{1-1}` is its number minus 1."""
BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
END = r"(weight|bias)"


def _resnet(shortcut: str, last: str) -> Rules:
    return (
        (r"conv1\.weight", "conv.weight"),
        (rf"bn1\.{BN}", "bn.{1}"),
        (r"layer(\d)\.(\d+)\.conv([12])\.weight", "stages.{1-1}.{2}.conv{3}.weight"),
        (rf"layer(\d)\.(\d+)\.bn([12])\.{BN}", "stages.{1-1}.{2}.bn{3}.{4}"),
        (rf"layer(\d)\.(\d+)\.{shortcut}\.0\.weight", "stages.{1-1}.{2}.shortcut.0.weight"),
        (rf"layer(\d)\.(\d+)\.{shortcut}\.1\.{BN}", "stages.{1-1}.{2}.shortcut.1.{3}"),
        (rf"{last}\.{END}", "classifier.{1}"),
    )


_WRN: Rules = (
    (r"conv1\.weight", "conv.weight"),
    (rf"block(\d)\.layer\.(\d+)\.bn([12])\.{BN}", "stages.{1-1}.{2}.bn{3}.{4}"),
    (r"block(\d)\.layer\.(\d+)\.conv([12])\.weight", "stages.{1-1}.{2}.conv{3}.weight"),
    (r"block(\d)\.layer\.(\d+)\.convShortcut\.weight", "stages.{1-1}.{2}.shortcut.weight"),
    (rf"bn1\.{BN}", "bn.{1}"),
    (rf"fc\.{END}", "classifier.{1}"),
)


def _vgg(unpooled: str, pooled: str) -> Rules:
    # Our stages with a pooling layer begin with it, so that their other layers are numbered from 1.
    return (
        (rf"block([{unpooled}])\.(\d+)\.{BN}", "stages.{1}.{2}.{3}"),
        (rf"block([{pooled}])\.(\d+)\.{BN}", "stages.{1}.{2+1}.{3}"),
        (rf"classifier\.{END}", "classifier.{1}"),
    )


_LENET: Rules = (
    (rf"features\.([036])\.{END}", "{1}.{2}"),
    (rf"fc\.([02])\.{END}", "{1+9}.{2}"),
)


@dataclass(frozen=True)
class Scheme:
    """Names that some projects give to the weights of one of our architectures."""

    projects: str
    kinds: tuple[type[AnyNetwork], ...]
    rules: Rules
    pads: bool = False
    """True if a shortcut without weights is zero padding, as in our networks (option A)."""
    caution: str = ""
    """A difference from our network that the names cannot show; "" if there is none."""
    same_at: Callable[[int, int], bool] = lambda height, width: True
    """Returns whether the project's network computes the same function as ours for images of a height and width."""
    sides: str = ""
    """Text that lists the image sizes of `same_at`; "" if these are all."""

    def renamed(self, weights: Mapping[str, Tensor]) -> Weights | None:
        """Return all weights under our names; None if a name is not in the scheme or two names would become one."""
        found: Weights = {}
        for given, value in weights.items():
            name = self._ours(given)
            if name is None or name in found:
                return None
            found[name] = value
        return found

    def _ours(self, name: str) -> str | None:
        for pattern, own_name in self.rules:
            if match := re.fullmatch(pattern, name):
                return re.sub(r"\{(\d)([+-]\d+)?\}", partial(_filled, match), own_name)
        return None


def _filled(match: re.Match[str], slot: re.Match[str]) -> str:
    group = match[int(slot[1])]
    return group if slot[2] is None else str(int(group) + int(slot[2]))


def _same_poolings(height: int, width: int) -> bool:
    return (height == 64) == (min(height, width) >= 64)


_VGGS = partial(
    Scheme,
    "RepDistiller, CMI, Fast-Datafree, NAYER",
    (Vgg11,),
    same_at=_same_poolings,
    sides="images with sides below 64 pixels, or of 64 x 64: these projects pool before the last stage only if the "
    "height is exactly 64 pixels, our network if no side is below 64 pixels",
)
_POOL = "the project may have a max pooling after the first convolution, which names do not show; our network has none"
SCHEMES = (
    Scheme(
        "pytorch_resnet_cifar10, pytorch-cifar, DAFL, CMI, Fast-Datafree, NAYER",
        (ResNet, ResNet18, ResNet34),
        _resnet("shortcut", "linear"),
        pads=True,
    ),
    Scheme("pytorch-cifar-models, RepDistiller, CMI, Fast-Datafree, NAYER", (ResNet,), _resnet("downsample", "fc")),
    Scheme("torchvision, timm", (ResNet18, ResNet34), _resnet("downsample", "fc"), caution=_POOL),
    Scheme("ZeroShotKnowledgeTransfer, RepDistiller, CMI, Fast-Datafree, NAYER", (Wrn,), _WRN),
    _VGGS(rules=_vgg("04", "123")),
    _VGGS(rules=_vgg("0", "1234")),
    Scheme("DAFL, CMI, Fast-Datafree, NAYER", (LeNet5, LeNet5Half), _LENET),
)


@dataclass(frozen=True)
class Recognised:
    """Weights whose names and shapes are exactly those of `network`, and the scheme of their original names.

    BN's `num_batches_tracked` may be missing.
    """

    network: AnyNetwork
    weights: Weights
    scheme: Scheme | None = None
    """None if the original names are our own."""


def recognise(weights: Weights) -> Recognised | None:
    """Return the network that fits the weights' names and shapes; None if no known network fits."""
    return next(recognitions(weights), None)


def recognitions(weights: Weights) -> Iterator[Recognised]:
    """Yield the network that fits the weights' names and shapes, once for each image size that changes our names."""
    for scheme in (None, *SCHEMES):
        renamed = weights if scheme is None else scheme.renamed(weights)
        network = None if renamed is None else network_of(renamed)
        if renamed is None or network is None:
            continue
        padded = isinstance(network, ResNet) and network.shortcut == "a"
        if scheme is None or (isinstance(network, scheme.kinds) and (scheme.pads or not padded)):
            yield Recognised(network, renamed, scheme)


def network_of(weights: Weights) -> AnyNetwork | None:
    """Return the network whose state dict has exactly these names and shapes; None if there is no such network."""
    for guess in (_resnet_of, _wrn_of, _vgg_of, _lenet_of, _torchvision_of):
        try:
            network, first, last = guess(weights)
            channels, classes = weights[first].shape[1], weights[last].shape[0]
            if any(_shapes(network, channels, side, classes) == _shapes_of(weights) for side in SIDES):
                return network
        except (KeyError, IndexError, InputError):
            continue  # not this architecture: a name or a shape of its first layers is missing
    return None


SIDES = (32, 28, 64)
"""Image sides, in pixels, that are tried: a network's names and shapes may depend on them."""
Guess = tuple[AnyNetwork, str, str]
"""A network that the weights may belong to, and the names of its first and last weights."""


def _resnet_of(weights: Weights) -> Guess:
    blocks, width = _blocks(weights, r"stages\.(\d+)\.\d+\.conv1\.weight"), weights["conv.weight"].shape[0]
    ends = ("conv.weight", "classifier.weight")
    if len(blocks) == 4:
        kind = {four.blocks: four for four in (ResNet18, ResNet34)}[blocks]  # type: ignore[index]
        return kind(width=width), *ends
    has_weights = any(".shortcut." in name for name in weights)
    return ResNet(depth=6 * blocks[0] + 2, width=width, shortcut="b" if has_weights else "a"), *ends


def _wrn_of(weights: Weights) -> Guess:
    blocks = _blocks(weights, r"stages\.(\d+)\.\d+\.conv1\.weight")
    width = weights["classifier.weight"].shape[1] // 64
    return Wrn(depth=6 * blocks[0] + 4, width=width), "conv.weight", "classifier.weight"


def _vgg_of(weights: Weights) -> Guess:
    return Vgg11(width=weights["stages.0.0.weight"].shape[0]), "stages.0.0.weight", "classifier.weight"


def _lenet_of(weights: Weights) -> Guess:
    kind = {kind.convs[0]: kind for kind in (LeNet5, LeNet5Half)}[weights["0.weight"].shape[0]]
    return kind(), "0.weight", "11.weight"


def _torchvision_of(weights: Weights) -> Guess:
    blocks, bottleneck = _blocks(weights, r"layer(\d)\.\d+\.conv1\.weight"), "layer1.0.conv3.weight" in weights
    if weights["conv1.weight"].shape[-1] != 7:
        raise KeyError("the first convolution is not 7x7; torchvision, slow to import, has no such ResNet")
    models: dict[tuple[bool, tuple[int, ...]], str] = {
        (False, (2, 2, 2, 2)): "resnet18",
        (False, (3, 4, 6, 3)): "resnet34",
        (True, (3, 4, 6, 3)): "resnet50",
        (True, (3, 4, 23, 3)): "resnet101",
        (True, (3, 8, 36, 3)): "resnet152",
    }
    return Torchvision(model=models[bottleneck, blocks]), "conv1.weight", "fc.weight"


def _blocks(weights: Weights, pattern: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage."""
    return tuple(Counter(match[1] for name in weights if (match := re.fullmatch(pattern, name))).values())


def _shapes(network: AnyNetwork, channels: int, side: int, classes: int) -> dict[str, torch.Size]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _shapes_of(network.build((channels, side, side), classes).state_dict())


def _shapes_of(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
