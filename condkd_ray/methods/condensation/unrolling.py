"""Differentiable SGD of a ConvNet on synthetic images, and the memory it takes.

Letters: B images a step, C channels, H W height and width, K classes, P parameters, N steps.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.models.convnet import ConvNet

FLOATS_AN_ACTIVATION, FLOATS_A_PARAMETER, FLOATS_A_PIXEL = 6.5, 2.5, 2.0


def logits_with(network: nn.Module, parameters: Tensor, images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, K) by `network` with `parameters` (P,) in place of its own; differentiable in both."""
    names, own = zip(*network.named_parameters(), strict=True)
    parts = parameters.split([part.numel() for part in own])
    views = {name: part.view_as(old) for name, part, old in zip(names, parts, own, strict=True)}
    return functional_call(network, views, (images,)).float()


def unroll(network: nn.Module, start: Tensor, step_size: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The parameters (P,) that plain SGD from `start` reaches, a step a batch; differentiable in images and step size.

    A batch is images (B, C, H, W) and their classes (B,).
    """
    reached = start.detach().requires_grad_()
    for images, labels in batches:
        loss = F.cross_entropy(logits_with(network, reached, images), labels)
        (gradient,) = torch.autograd.grad(loss, [reached], create_graph=True)
        reached = reached - step_size * gradient
    return reached


def unrolled_bytes(
    network: ConvNet, image_shape: tuple[int, int, int], num_classes: int, *, steps: int, batch: int, kept: int = 0
) -> int:
    """What `unroll` and its backward pass take at their peak: 4 (N + 1) (6.5 B A + 2.5 P + 2 B C H W) bytes.

    A, the outputs of all convolutions for one image, stand for a block's inner maps, their gradients and what the
    second derivative keeps of both; one step more is at work in the backward pass. `kept` more parameter vectors, 4 P
    bytes each, are held meanwhile. Estimated from above: in 13 settings (N 1 to 40, B 2 to 100, width 16 to 256,
    images 8x8 to 32x32, with and without DSA; one run each) the resident memory of a process on a CPU grew by 0.56 to
    0.90 of it. On a GPU it was not measured.
    """
    with Streams(0).forked("sizes"), torch.device("meta"):
        module = network.build(image_shape, num_classes)
        maps, activations = torch.empty(1, *image_shape), 0
        for block in module.get_submodule("blocks").children():
            activations += block.get_submodule("0")(maps).numel()
            maps = block(maps)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    an_image = FLOATS_AN_ACTIVATION * activations + FLOATS_A_PIXEL * math.prod(image_shape)
    return int(4 * ((steps + 1) * (batch * an_image + FLOATS_A_PARAMETER * num_parameters) + kept * num_parameters))


def require_memory(needed: Callable[..., int], free: int, **sizes: int) -> None:
    """Raise `InputError` where `needed(**sizes)` bytes are more than `free`.

    The message tells what each size would have to be, were it the only one made smaller.
    """
    if needed(**sizes) <= free:
        return

    def largest(name: str) -> int:
        return bisect(range(1, sizes[name]), free, key=lambda size: needed(**sizes | {name: size}))

    fitting = [f"{name} {largest(name)}" for name in sizes if largest(name)]
    advice = f"as with {' or '.join(fitting)}" if fitting else f"which no smaller {' or '.join(sizes)} alone would fit"
    what = ", ".join(f"{name} {size}" for name, size in sizes.items())
    accepted = f"at most {_gib(free)}, which are free, {advice}"
    require(False, f"memory of {what}", _gib(needed(**sizes)), accepted)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
