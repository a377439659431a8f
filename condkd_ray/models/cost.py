"""Parameters, multiply-adds and shape facts of a network, counted in one forward pass.

Letters: B batch, C channels, H W height and width, K classes, D features.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from condkd_ray.models.hooks import BatchNorms, logits_in
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
    """D, the inputs of the last linear layer, or in segmentation the channels that enter the last convolution with K
    outputs."""
    normalised: bool
    """True if the network has BN layers."""


def cost(module: nn.Module, image_shape: tuple[int, ...]) -> Cost:
    """Count the cost of `module` on an image of `image_shape` (C, H, W); its logits are (B, K) or (B, K, H, W).

    The module's mode is restored afterwards. Only shapes matter, so the module may be on the "meta" device.
    """
    linear: list[int] = []
    maps: list[tuple[int, int]] = []

    def note(layer: nn.Module, *_: object) -> None:
        if isinstance(layer, nn.Linear):
            linear.append(layer.in_features)
        elif isinstance(layer, nn.Conv2d):
            maps.append((layer.in_channels, layer.out_channels))

    was_training = module.training
    with ExitStack() as hooks, torch.no_grad(), FlopCounterMode(display=False) as counter:
        hooks.callback(module.train, was_training)
        for layer in module.modules():
            hooks.enter_context(layer.register_forward_hook(note))
        images = torch.zeros(IMAGES, *image_shape, device=next(module.parameters()).device)
        output: Any = logits_in(module.eval()(images))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    # PyTorch counts a multiply-add as two operations.
    multiply_adds = counter.get_total_flops() // (2 * IMAGES)
    dense = isinstance(output, Tensor) and output.ndim == 4
    widths = [inputs for inputs, outputs in maps if outputs == output.shape[1]] if dense else linear
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
