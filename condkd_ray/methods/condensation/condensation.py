"""What a condensation is: a frozen dataclass that makes a few labelled images stand for a whole data set.

And what several share: how rows are chosen by class, and networks of the condensers' own.
Letters: N images, M images a class, B batch, C channels, H W height and width, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Meter, Method, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.core.view import OnStep, unheard
from condkd_ray.models.plain import ConvNet, ConvNetModule
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Condensation(Method, ABC):
    """Base of the condensers. They see real images and run once, before any trial.

    None sees a teacher but one that says so by `needs_teacher`: its `condense` takes one more argument, `teacher`.

    Sets are nested: for one seed the images of a smaller `ipc` are the first ones of each class of a larger, so that
    an ablation over `ipc` compares more images with fewer of the same.
    """

    recipe: ClassVar[int] = 1
    """Version of its code, raised when the same settings give other images: sets cached before are then not used."""
    name: str
    ipc: int = 10
    """Images per class."""

    def __post_init__(self) -> None:
        require(self.ipc >= 1, "condensation.ipc", self.ipc, "1 or more; no condensation at all is another arm")

    @property
    def needs_teacher(self) -> bool:
        """Whether its images are made of the very teacher that they will guide. Records must then say so."""
        return False

    @property
    def label(self) -> str:
        """Its name in records and tables."""
        return self.name

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `InputError` where its images cannot be made of `teacher`, of which only the form counts."""
        return

    @abstractmethod
    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip_ok: bool,
        rng: Streams,
        on_step: OnStep = unheard,
    ) -> Samples:
        """K x ipc images in the teacher's space, sorted by class: ipc of class 0, ipc of class 1, ...; no logits.

        `real` is in the teacher's space, which `mean` and `std` (a channel, in units of [0, 1] pixels) define; it is
        not changed. `flip_ok`: a mirrored image keeps its class. `rng` is fresh, seeded by the trial. What takes long
        tells `on_step`. A condenser names the arguments it uses and takes the others as `**_`. Raises `InputError`
        where a class has too few images.
        """

    def whole(self) -> Self:
        """The config to compute and cache; smaller `ipc` sets are prefixes of it."""
        return self


def class_table(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Row numbers by class (K, largest class), in the order of their rows, and how many of each line count (K,).

    What lies beyond a class's count is a valid row number of no meaning.
    """
    counts = labels.bincount(minlength=num_classes)
    order = labels.argsort(stable=True)
    places = torch.arange(int(counts.max()), device=labels.device)
    starts = counts.cumsum(0) - counts
    return order[(starts[:, None] + places).clamp(max=len(labels) - 1)], counts


def per_class_order(labels: Tensor, rng: torch.Generator) -> Tensor:
    """All row numbers (N,), class after class, in random order within each class."""
    shuffled = torch.randperm(len(labels), generator=rng, device=labels.device)
    return shuffled[labels[shuffled].argsort(stable=True)]


def first_rows(labels: Tensor, ipc: int, num_classes: int) -> Tensor:
    """Row numbers (K x ipc,) of the first `ipc` of each class, class-major. Raises `InputError` where one has fewer."""
    table, counts = class_table(labels, num_classes)
    fewest = int(counts.argmin())
    accepted = f"at most {int(counts[fewest])}, the images of class {fewest}"
    require(int(counts[fewest]) >= ipc, "number of images per class", ipc, accepted)
    return table[:, :ipc].flatten()


def first_per_class(samples: Samples, ipc: int, num_classes: int) -> Samples:
    """The first `ipc` samples of each class, class-major: how a larger set serves a smaller ipc."""
    return samples[first_rows(samples.labels, ipc, num_classes)]


def random_per_class(labels: Tensor, ipc: int, num_classes: int, rng: torch.Generator) -> Tensor:
    """Row numbers (K x ipc,) of random images, class-major; nested over `ipc` for one state of `rng`."""
    order = per_class_order(labels, rng)
    return order[first_rows(labels[order], ipc, num_classes)]


def draw_per_class(table: Tensor, counts: Tensor, num_each: int, rng: torch.Generator) -> Tensor:
    """Row numbers (K, num_each), drawn anew without replacement within each class of a `class_table`."""
    keys = torch.rand(table.shape, generator=rng, device=table.device)
    places = torch.arange(table.shape[1], device=table.device)
    picked = keys.masked_fill(places >= counts[:, None], -1).topk(num_each, dim=1).indices
    return table.gather(1, picked)


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
