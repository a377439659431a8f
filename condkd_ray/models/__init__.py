"""Architectures of teachers, students and embedding networks: each a frozen dataclass that builds a module.

On command lines a network is one word, its name and then its fields: "resnet-14-16", "resnet-14", "lenet5",
"torchvision:resnet50".
"""

import re
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin

from condkd_ray.core.families import Family, hints
from condkd_ray.core.method import InputError, require
from condkd_ray.models.alexnet import AlexNet, AlexNetHalf
from condkd_ray.models.convnet import ConvNet
from condkd_ray.models.deeplab import DeepLabMobileNetV2, DeepLabResNet
from condkd_ray.models.lenet import LeNet5, LeNet5Half
from condkd_ray.models.mobilenet import MobileNetV2
from condkd_ray.models.network import OPTIONAL, Network, label
from condkd_ray.models.resnet import ResNet, ResNet18, ResNet34
from condkd_ray.models.squeezenet import SqueezeNet
from condkd_ray.models.torchvision import Torchvision
from condkd_ray.models.vgg import Vgg11
from condkd_ray.models.wrn import Wrn

_Small = LeNet5 | LeNet5Half | ResNet | ConvNet | AlexNet | AlexNetHalf
_Large = ResNet18 | ResNet34 | Wrn | Vgg11 | MobileNetV2 | SqueezeNet | Torchvision
_Dense = DeepLabResNet | DeepLabMobileNetV2
AnyNetwork = _Small | _Large | _Dense
"""All built-in networks, distinguished by the field `name`."""


def _check_spelling(kind: type[Network]) -> None:
    """Raise `InputError` unless the fields of a network fit its one-word spelling: words, then integers."""
    words = [name for name, hint in hints(kind).items() if hint is str or get_origin(hint) is Literal]
    for field in fields(kind):
        hint = hints(kind)[field.name]
        fits = isinstance(field.default, str) if field.name in words else hint is int is type(field.default)
        shown = f"{hint} without a default" if field.default is MISSING else str(hint)
        accepted = "a word, a Literal of words, or int, with a default: command lines spell a network name:word-8-16"
        require(fits, f"networks plug-in {kind.__name__}: field {field.name}", shown, accepted)


NETWORKS = Family("networks", Network, get_args(AnyNetwork), _check_spelling)
OTHER = f"or {label(ResNet(depth=20, shortcut='a'))} for shortcuts without weights, as in the CIFAR nets of the paper"


def parse(text: str) -> AnyNetwork:
    """Return the network that `text` spells; the inverse of `label`. Omitted fields keep their defaults.

    Raises `InputError` for text that spells no network (such as a path), and for values that the network refuses.
    """
    match = re.fullmatch(r"([a-z0-9_]+)((?::[a-z0-9_]+)*)((?:-[0-9]{1,6})*)", text)
    kind: Any = NETWORKS.members().get(match[1]) if match else None
    if match is None or kind is None:
        raise _unknown(text)
    words, numbers = match[2].split(":")[1:], [int(number) for number in match[3].split("-")[1:]]
    word_fields, number_fields = _fields(kind)
    if len(words) > len(word_fields) or len(numbers) > len(number_fields):
        raise _unknown(text)
    types = hints(kind)
    if any(word not in (get_args(types[field]) or [word]) for field, word in zip(word_fields, words, strict=False)):
        raise _unknown(text)
    given = [*zip(word_fields, words, strict=False), *zip(number_fields, numbers, strict=False)]
    return kind(**dict(given))  # type: ignore[arg-type]


def _fields(kind: type[Network]) -> tuple[list[str], list[str]]:
    """Return the names of the word fields and of the integer fields."""
    given = [field for field in fields(kind) if field.name != "name"]
    words = [field.name for field in given if isinstance(field.default, str)]
    return words, [field.name for field in given if field.name not in words]


def _spelling(kind: Any) -> str:
    words, numbers = _fields(kind)
    optional = {field.name for field in fields(kind) if field.metadata == OPTIONAL}
    needed = [word.upper() for word in words if word not in optional]
    return "-".join([":".join([kind.name, *needed]), *map(str.upper, numbers)])


def _unknown(text: str) -> InputError:
    spellings = ", ".join(map(_spelling, NETWORKS.members().values()))
    accepted = f"{spellings}, such as {label(ResNet())}, {OTHER}{NETWORKS.more}"
    return InputError(f"network is {text!r}; accepted: {accepted}")
