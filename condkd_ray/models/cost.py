"""Parameters, multiply-adds and shape facts of a network, counted in one forward pass.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from condkd_ray.models.hooks import BatchNorms
from condkd_ray.models.network import Network

IMAGES = 2
"""Images in the forward pass."""


@dataclass(frozen=True)
class Cost:
    """Size of a network, and its work for one image."""

    parameters: int
    multiply_adds: int
    """Multiply-adds of convolutions and matrix products for one image."""
    features: int
    """Width D of the input of the last linear layer."""
    normalised: bool
    """True if the network has BN layers."""


def cost(module: nn.Module, image_shape: tuple[int, ...]) -> Cost:
    """Count the cost of `module`, (B, C, H, W) to (B, K), on an image of `image_shape` (C, H, W).

    The module's mode is restored afterwards. Only shapes matter, so the module may be on the "meta" device.
    """
    widths: list[int] = []

    def note(layer: nn.Linear, *_: object) -> None:
        widths.append(layer.in_features)

    was_training = module.training
    with ExitStack() as hooks, torch.no_grad(), FlopCounterMode(display=False) as counter:
        hooks.callback(module.train, was_training)
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                hooks.enter_context(layer.register_forward_hook(note))
        module.eval()(torch.zeros(IMAGES, *image_shape, device=next(module.parameters()).device))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    # PyTorch counts a multiply-add as two operations.
    multiply_adds = counter.get_total_flops() // (2 * IMAGES)
    return Cost(parameters, multiply_adds, widths[-1], any(isinstance(layer, BatchNorms) for layer in module.modules()))


def cost_of(network: Network, image_shape: tuple[int, int, int], num_classes: int) -> Cost:
    """Count the cost of a network that is not built yet; only shapes are computed, so no memory is needed.

    Torchvision's `regnet` models cannot be counted this way: they compute their widths with tensors.
    """
    with torch.device("meta"):
        return cost(network.build(image_shape, num_classes), image_shape)


def meta_cost(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of any module for one input of `shape`, latents or an image, from shapes alone."""
    with torch.device("meta"):
        return cost(build(), shape).multiply_adds


def short(count: float) -> str:
    """Return a count with three digits and a unit: 652 k, 11.2 M, 1.16 G, 127 P, 1.39 E."""
    for unit, sign in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:  # 999 999 is 1.00 M
            return f"{count / unit:#.3g}".rstrip(".") + f" {sign}"
    return str(count)
