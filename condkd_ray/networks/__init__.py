"""Architectures of teachers, students and embedding networks: one a file, a frozen dataclass that builds a module.

On command lines a network is one word, its name and then its fields: "resnet-14-16", "resnet-14", "lenet5".
"""

from __future__ import annotations

import re
from dataclasses import fields

from condkd_ray.method import InputError
from condkd_ray.networks.convnet import ConvNet
from condkd_ray.networks.lenet import LeNet5, LeNet5Half
from condkd_ray.networks.network import Network, label
from condkd_ray.networks.resnet import ResNet

__all__ = ["AnyNetwork", "ConvNet", "LeNet5", "LeNet5Half", "Network", "ResNet", "label", "parse"]

AnyNetwork = LeNet5 | LeNet5Half | ResNet | ConvNet
"""Told apart by `name`."""

_BY_NAME: dict[str, type[AnyNetwork]] = {kind.name: kind for kind in (LeNet5, LeNet5Half, ResNet, ConvNet)}


def parse(text: str) -> AnyNetwork:
    """The network that `text` spells; the inverse of `label`. Fields left out keep their defaults.

    Raises `InputError` for a text that spells none (a path, say), and for numbers the architecture refuses.
    """
    match = re.fullmatch(r"([a-z0-9_]+)((?:-[0-9]{1,6})*)", text)
    kind = _BY_NAME.get(match[1]) if match else None
    if match is None or kind is None:
        raise _unknown(text)
    numbers = [int(number) for number in match[2].split("-")[1:]]
    names = _numbers(kind)
    if len(numbers) > len(names):
        raise _unknown(text)
    return kind(**dict(zip(names, numbers, strict=False)))  # type: ignore[arg-type]


def _numbers(kind: type[AnyNetwork]) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "name"]


def _unknown(text: str) -> InputError:
    spellings = ["-".join([name, *map(str.upper, _numbers(kind))]) for name, kind in _BY_NAME.items()]
    return InputError(f"network is {text!r}; accepted: {', '.join(spellings)}, such as {label(ResNet())}")
