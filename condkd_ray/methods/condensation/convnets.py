"""Networks of the condensers' own: which, and how they are trained on labelled images in the teacher's space.

Letters: N images, B batch, C channels, H W height and width, K classes.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Meter
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.models.plain import ConvNet, ConvNetModule


def train(
    network: nn.Module,
    real: Samples,
    *,
    epochs: int,
    batch: int,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    falls: bool = False,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    on_epoch: Callable[[], None] = lambda: None,
    rng: torch.Generator,
) -> nn.Module:
    """Train `network` in place by cross-entropy, and give it back in eval mode, frozen.

    Each epoch sees all N images once, in an order that `rng` draws on their device, in steps of near-equal size of at
    most `batch`. `lr` is constant, or `falls` linearly to 0. `augment` sees each batch (B, C, H, W); `on_epoch` is
    called after each epoch. Raises `NonFiniteError` at the end of the epoch in which the loss became NaN or infinite.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    parts = -(-len(real) // batch)
    total = epochs * parts
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1 - step / total, 0) if falls else 1)
    for _ in range(epochs):
        meter = Meter("condensation")
        for rows in torch.randperm(len(real), generator=rng, device=real.images.device).tensor_split(parts):
            loss = F.cross_entropy(network(augment(real.images[rows])).float(), real.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            meter.add(training=loss)
        meter.read()  # raises where a loss was not finite
        on_epoch()
    optimizer.zero_grad()
    return network.eval().requires_grad_(False)


def fresh_convnet(
    images: Tensor, num_classes: int, name: str, rng: Streams, *, width: int, depth: int
) -> ConvNetModule:
    """A new ConvNet for `images` (B, C, H, W), on their device, from stream `init/<name>`; see `convnet_for`."""
    channels, height, wide = images.shape[1:]
    network = convnet_for((channels, height, wide), width=width, depth=depth)
    with rng.forked(f"init/{name}"):
        module = network.build((channels, height, wide), num_classes)
    assert isinstance(module, ConvNetModule)
    return module.to(images.device)


def convnet_for(image_shape: Sequence[int], *, width: int, depth: int) -> ConvNet:
    """The condensation papers' network for images (C, H, W), of fewer blocks where the last map would be one place."""
    # Through a last map of 1x1 the pixels of 8x8 digits hardly move (by 0.005 in all); through 2x2 they do (0.17).
    return ConvNet(width=width, depth=max(1, min(depth, int(math.log2(min(image_shape[1:]))) - 1)))
