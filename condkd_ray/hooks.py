"""A look into a network while it runs. The only home of hooks, for teachers and students.

Letters: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.method import InputError, require

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

    def see(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                taps[name] = output.float()

        return hook

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(hooked(network.get_submodule(name).register_forward_hook(see(name))))
        yield taps


@torch.no_grad()
def spatial_layers(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the layers that give (B, C, H, W) with more places than one; the network is left as it is."""
    copied = copy.deepcopy(network).eval()
    names = [name for name, _ in copied.named_modules() if name]
    with tapped(copied, names) as taps:
        copied(torch.zeros(1, *image_shape, device=next(copied.parameters()).device))
    return [name for name in names if name in taps and taps[name].ndim == 4 and taps[name][0, 0].numel() > 1]


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Within it the hook of `handle` runs; afterwards it is gone."""
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Trace:
    """What ran: the last linear layer, and names of layers.

    `bn`: those of BN with running statistics, in the order of execution; `tappable`: those that give a tensor;
    `weighted`: linear layers and convolutions but the last linear one, in the order of execution.
    """

    classifier: nn.Linear
    bn: tuple[str, ...]
    tappable: tuple[str, ...]
    weighted: tuple[str, ...]


@torch.no_grad()
def trace(network: nn.Module, num_classes: int, shape: tuple[int, int, int]) -> Trace:
    """Two blank images through `network`. Raises `InputError` where they do not become `num_classes` logits."""
    ran: dict[str, object] = {}
    linear: list[nn.Linear] = []
    bn_names: list[str] = []
    weighted: dict[str, nn.Module] = {}
    device = next(network.parameters()).device

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, _: object, output: object) -> None:
            ran[name] = output
            if isinstance(module, nn.Linear | nn.Conv2d):
                weighted[name] = module
            if isinstance(module, nn.Linear):
                linear.append(module)
            elif isinstance(module, BatchNorms) and module.running_mean is not None:
                bn_names.append(name)

        return see

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(hooked(module.register_forward_hook(hook(name))))
        try:
            logits = network(torch.zeros(2, *shape, device=device))
        except RuntimeError as error:
            raise InputError(f"the teacher cannot read images of shape {shape}: {error}") from error
    require(
        tuple(logits.shape) == (2, num_classes),
        "shape of the teacher's answer to 2 images",
        tuple(logits.shape),
        f"(2, {num_classes})",
    )
    require(
        bool(linear) and linear[-1].out_features == num_classes,
        "last linear layer of the teacher",
        linear[-1] if linear else None,
        f"a torch.nn.Linear with {num_classes} outputs that makes the logits",
    )
    # In the order of definition: a reader of the list finds a stage before its parts.
    tappable = tuple(name for name, _ in network.named_modules() if name and isinstance(ran.get(name), Tensor))
    others = tuple(name for name, module in weighted.items() if module is not linear[-1])
    return Trace(linear[-1], tuple(dict.fromkeys(bn_names)), tappable, others)
