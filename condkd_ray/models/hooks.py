"""A look into a network while it runs. The only home of hooks, for teachers and students.

Letters: B batch, C channels, H W height and width.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
BatchNorms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def over_space(x: Tensor) -> Tensor:
    """Means over all dimensions after the second: (B, C, ...) to (B, C)."""
    return x.flatten(2).mean(2) if x.ndim > 2 else x


@contextmanager
def tapped(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within it each forward pass leaves the outputs of `layers`, float32, in the dictionary; no hook stays behind.

    Layers that do not give a tensor leave nothing.
    """
    taps: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            taps[name] = output.float()

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(network.get_submodule(name).register_forward_hook(partial(see, name)))
        yield taps


@contextmanager
def watched(layers: Mapping[str, nn.Module], read: Callable[[Tensor], T]) -> Iterator[dict[str, T]]:
    """Within it each layer, before it runs, leaves what `read` gives of its float32 input in the dictionary."""
    found: dict[str, T] = {}

    def see(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[name] = read(inputs[0].float())

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(see, name)))
        yield found


@torch.no_grad()
def spatial_layers(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the layers that give (B, C, H, W) with more places than one; the network is left as it is."""
    copied = copy.deepcopy(network).eval()
    names = [name for name, _ in copied.named_modules() if name]
    with tapped(copied, names) as taps:
        copied(torch.zeros(1, *image_shape, device=next(copied.parameters()).device))
    return [name for name in names if name in taps and taps[name].ndim == 4 and taps[name][0, 0].numel() > 1]


def stage_inputs(network: nn.Module, inputs: Mapping[str, Tensor], bn: Sequence[str]) -> dict[str, int]:
    """Names of a network's stages and the channels of what enters each.

    `inputs`: what entered each module, by name, without those that read the image itself; `bn`: the BN layers in the
    order of execution. The stages are the children of a module `stages`, as in the networks of this package, or
    `layer1`, `layer2`, ..., as in torchvision's ResNets; of these, those in `inputs` that read a map. In other networks
    each BN layer whose input has fewer places than those of all BN layers before it stands for a stage (our choice).
    """
    children = dict(network.named_children())
    if "stages" in children:
        named = [f"stages.{name}" for name, _ in children["stages"].named_children()]
    else:
        named = [name for name in children if re.fullmatch(r"layer\d+", name)]
    found = [name for name in named if name in inputs and inputs[name].ndim == 4]
    if not found:
        known = [name for name in bn if name in inputs]
        places = [inputs[name][0, 0].numel() for name in known]
        found = [name for i, name in enumerate(known) if places[i] < min(places[:i], default=math.inf)]
    return {name: inputs[name].shape[1] for name in found}
