"""What a network costs, counted by one look at it; nothing is typed in.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condkd_ray.models.generator import UpsampledConv
from condkd_ray.models.hooks import BatchNorms
from condkd_ray.models.network import Network


@dataclass(frozen=True)
class Cost:
    """Of one network."""

    parameters: int
    multiply_adds: int
    """Of convolutions and linear layers, for one image."""
    features: int
    """The D that enter the last linear layer."""
    normalised: bool
    """Whether it has BN layers."""


def cost(module: nn.Module, image_shape: tuple[int, ...]) -> Cost:
    """Of `module`, (B, C, H, W) to (B, K), on an image of `image_shape` (C, H, W); its mode is put back afterwards.

    Only shapes matter: the module may lie on the "meta" device, which has nothing else.
    """
    counts: list[int] = []
    widths: list[int] = []

    def see(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            taps = layer.taps if isinstance(layer, UpsampledConv) else math.prod(layer.kernel_size)
            counts.append(output[0].numel() * layer.in_channels // layer.groups * taps)
        elif isinstance(layer, nn.Linear):
            counts.append(output[0].numel() * layer.in_features)
            widths.append(layer.in_features)

    was_training = module.training
    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(module.train, was_training)
        for layer in module.modules():
            hooks.enter_context(layer.register_forward_hook(see))
        module.eval()(torch.zeros(2, *image_shape, device=next(module.parameters()).device))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Cost(parameters, sum(counts), widths[-1], any(isinstance(layer, BatchNorms) for layer in module.modules()))


def cost_of(network: Network, image_shape: tuple[int, int, int], num_classes: int) -> Cost:
    """Of a network not yet built: nothing is computed but shapes, so the largest takes no memory.

    Torchvision's `regnet` models cannot be built so: they compute their widths with tensors.
    """
    with torch.device("meta"):
        return cost(network.build(image_shape, num_classes), image_shape)


def meta_cost(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """Multiply-adds of any module for one input of `shape`, latents or an image; nothing is computed but shapes."""
    with torch.device("meta"):
        return cost(build(), shape).multiply_adds


def short(count: float) -> str:
    """Three digits: 652 k, 11.2 M, 1.16 G, 127 P, 1.39 E."""
    for unit, sign in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:  # 999 999 is 1.00 M
            return f"{count / unit:#.3g}".rstrip(".") + f" {sign}"
    return str(count)
