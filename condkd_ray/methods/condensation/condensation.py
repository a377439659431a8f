"""Contract of the condensers, helpers that several share, and the condensers of real images.

A condenser is a frozen dataclass that makes a few labelled images from a whole data set. The helpers select rows by
class and train the condensers' own networks. The condensers of real images are:

- Random images: no condensation, but the baseline for every condensed set.
- All images: the upper reference, distillation with the data that is otherwise unavailable.
- Herding (Welling, ICML 2009) selects images one by one, so that their mean follows the mean of their class.

In segmentation an image shows several classes, and these three select images of the whole data set instead of images of
each class (our choice).

Letters: N images, M images per class, B batch, C channels, H W height and width, K classes, D features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import Meter, Method, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, pixel_counts, unseen
from condkd_ray.core.task import BOTH
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.models.convnet import ConvNet, ConvNetModule
from condkd_ray.models.teacher import Teacher

BATCH = 512
"""Images per forward pass; this only limits memory."""
PIXELS = 2**19
"""Pixels per forward pass over segmented images; this only limits memory."""


@dataclass(frozen=True, kw_only=True)
class Condensation(Method, ABC):
    """Base class of the condensers, each of which makes its images once, before the trials.

    A condenser gets no teacher unless `needs_teacher` is true: its `condense` then takes one more argument, `teacher`.

    Sets are nested: for one seed the images of a smaller `ipc` are the first images of each class of a larger one, in
    segmentation its first images, so that an ablation over `ipc` compares a set with its own subsets.
    """

    code_version: ClassVar[int] = 1
    """Version of the method's code. It is increased when the same settings give different images; sets cached before
    are then not used."""
    name: str
    ipc: int = 10
    """Images per class; in segmentation, labelled images in all."""

    def __post_init__(self) -> None:
        require(self.ipc >= 1, "condensation.ipc", self.ipc, "1 or more; for none, omit the condensation")

    @property
    def needs_teacher(self) -> bool:
        """True if the images are made from the same teacher that they will guide; records then show this."""
        return False

    @property
    def label(self) -> str:
        """Name in records and tables."""
        return self.name

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `InputError` if the images cannot be made from `teacher`, by its architecture."""
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
        on_step: OnStep = no_bar,
    ) -> Samples:
        """Return K x ipc images in the teacher's space, sorted by class: ipc of class 0, ipc of class 1, ...

        In segmentation, where the labels of `real` are (N, H, W), it is `ipc` images. They have no logits. `real` is in
        the teacher's space, which `mean` and `std` (per channel, in units of [0, 1] pixels) define; it is not changed.
        `flip_ok`: a mirrored image keeps its class. `rng` is new, seeded by the trial. Long computations report to
        `on_step`. A condenser declares the arguments it uses and takes the others as `**_`. Raises `InputError` if a
        class, in segmentation `real`, has too few images.
        """

    def cached_config(self) -> Self:
        """Return the config to compute and cache; sets of a smaller `ipc` are prefixes of its set."""
        return self


def class_table(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return row numbers by class (K, largest class), in order, and the number of rows of each class (K,).

    Entries beyond a class's number are valid row numbers without meaning.
    """
    counts = labels.bincount(minlength=num_classes)
    order = labels.argsort(stable=True)
    columns = torch.arange(int(counts.max()), device=labels.device)
    starts = counts.cumsum(0) - counts
    return order[(starts[:, None] + columns).clamp(max=len(labels) - 1)], counts


def per_class_order(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return all row numbers (N,), class after class, in random order within each class."""
    shuffled = torch.randperm(len(labels), generator=rng, device=labels.device)
    return shuffled[labels[shuffled].argsort(stable=True)]


def first_rows(labels: Tensor, ipc: int, num_classes: int) -> Tensor:
    """Return the rows (K x ipc,) of the first `ipc` of each class, class-major.

    For labels (N, H, W) they are the first `ipc` rows. Raises `InputError` if there are fewer.
    """
    if labels.ndim > 1:
        accepted = f"at most {len(labels)}, the labelled images"
        require(len(labels) >= ipc, "number of labelled images", ipc, accepted)
        return torch.arange(ipc, device=labels.device)
    table, counts = class_table(labels, num_classes)
    fewest = int(counts.argmin())
    accepted = f"at most {int(counts[fewest])}, the images of class {fewest}"
    require(int(counts[fewest]) >= ipc, "number of images per class", ipc, accepted)
    return table[:, :ipc].flatten()


def first_per_class(samples: Samples, ipc: int, num_classes: int) -> Samples:
    """Return the first `ipc` samples of each class, class-major: a set of smaller ipc from a larger one.

    In segmentation, the first `ipc` samples. Raises `InputError` if there are fewer.
    """
    return samples[first_rows(samples.labels, ipc, num_classes)]


def random_per_class(labels: Tensor, ipc: int, num_classes: int, rng: torch.Generator) -> Tensor:
    """Return rows (K x ipc,) of random images, class-major; nested over `ipc` for one state of `rng`.

    For labels (N, H, W) `ipc` rows of random images. Raises `InputError` if there are fewer.
    """
    if labels.ndim > 1:
        order = torch.randperm(len(labels), generator=rng, device=labels.device)
    else:
        order = per_class_order(labels, rng)
    return order[first_rows(labels[order], ipc, num_classes)]


def draw_per_class(table: Tensor, counts: Tensor, num_each: int, rng: torch.Generator) -> Tensor:
    """Return rows (K, num_each), drawn without replacement within each class of a `class_table`."""
    keys = torch.rand(table.shape, generator=rng, device=table.device)
    columns = torch.arange(table.shape[1], device=table.device)
    picked = keys.masked_fill(columns >= counts[:, None], -1).topk(num_each, dim=1).indices
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
    linear_decay: bool = False,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    on_epoch: Callable[[], None] = lambda: None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    rng: torch.Generator,
) -> nn.Module:
    """Train `network` in place by `loss_of` its logits and the labels; returns it in eval mode, frozen.

    Each epoch uses all N images once, in an order that `rng` draws on their device, in steps of near-equal size of at
    most `batch`. `lr` is constant, or decays linearly to 0 with `linear_decay`. `augment` is applied to each batch (B,
    C, H, W); `on_epoch` is called after each epoch. Raises `NonFiniteError` at the end of the epoch in which the loss
    became NaN or infinite.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    parts = -(-len(real) // batch)
    total = epochs * parts
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(1 - step / total, 0) if linear_decay else 1
    )
    for _ in range(epochs):
        meter = Meter("condensation")
        for rows in torch.randperm(len(real), generator=rng, device=real.images.device).tensor_split(parts):
            loss = loss_of(network(augment(real.images[rows])).float(), real.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            meter.add(training=loss)
        meter.read()  # raises if a loss was not finite
        on_epoch()
    optimizer.zero_grad()
    return network.eval().requires_grad_(False)


def fresh_convnet(
    images: Tensor, num_classes: int, name: str, rng: Streams, *, width: int, depth: int
) -> ConvNetModule:
    """Return a new ConvNet for `images` (B, C, H, W), on their device, from stream `init/<name>`; see `convnet_for`."""
    channels, height, wide = images.shape[1:]
    network = convnet_for((channels, height, wide), width=width, depth=depth)
    with rng.forked(f"init/{name}"):
        module = network.build((channels, height, wide), num_classes)
    assert isinstance(module, ConvNetModule)
    return module.to(images.device)


def convnet_for(image_shape: Sequence[int], *, width: int, depth: int) -> ConvNet:
    """Return the condensation papers' ConvNet for images (C, H, W), with fewer blocks if its last map would be 1x1."""
    # With a last map of 1x1 the pixels of 8x8 digits hardly change (by 0.005 in all); with 2x2 they do (0.17).
    return ConvNet(width=width, depth=max(1, min(depth, int(math.log2(min(image_shape[1:]))) - 1)))


@dataclass(frozen=True, kw_only=True)
class RandomReal(Condensation):
    """`ipc` real images of each class, drawn by the trial's seed (the "few-shot" arm of the literature).

    In segmentation `ipc` images in all.
    """

    tasks = BOTH
    name: Literal["random_real"] = "random_real"

    def condense(self, real: Samples, *, num_classes: int, rng: Streams, **_: object) -> Samples:
        """Return random images of each class, in segmentation of the whole set; nested over `ipc`."""
        rows = random_per_class(real.labels, self.ipc, num_classes, rng["condensation"])
        return unseen(real.images[rows], real.labels[rows])


@dataclass(frozen=True, kw_only=True)
class AllReal(Condensation):
    """Every real image, class after class, in segmentation in their order: not nested, as many of each as there are."""

    tasks = BOTH
    name: Literal["all_real"] = "all_real"
    ipc: Literal[0] = 0
    """Fixed: 0 means all images."""

    def __post_init__(self) -> None:
        require(self.ipc == 0, "condensation.ipc of all_real", self.ipc, "0, which means all images")

    def condense(self, real: Samples, **_: object) -> Samples:
        """Return all images, sorted by class; in segmentation, unsorted."""
        if real.labels.ndim > 1:
            return unseen(real.images, real.labels)
        rows = real.labels.argsort(stable=True)
        return unseen(real.images[rows], real.labels[rows])


def herd(embedded: Tensor, labels: Tensor, ipc: int, num_classes: int) -> Tensor:
    r"""Return row numbers (K x ipc,), class-major, in the order of selection, for embeddings (N, D) of classes (N,).

    The next image of a class is the one that brings the mean of the selected images closest to the mean \mu of the
    class: the t-th is argmin_x \| t \mu - \sum_{s < t} \phi(x_s) - \phi(x) \|, without repetition; among equals the
    first in the order of rows. The images of a smaller `ipc` are therefore the first ones of a larger one.

    Every class must have `ipc` images or more.
    """
    table, counts = class_table(labels, num_classes)
    sums = torch.zeros(num_classes, embedded.shape[1], dtype=embedded.dtype, device=embedded.device)
    means = sums.index_add(0, labels, embedded) / counts[:, None]
    squares = embedded.square().sum(1)
    unavailable = torch.arange(table.shape[1], device=labels.device) >= counts[:, None]
    chosen = []
    for number in range(1, ipc + 1):
        wanted = number * means - sums
        # | wanted - x |^2 less | wanted |^2, which is the same for all images of a class.
        distances = squares - 2 * (embedded @ wanted.T).gather(1, labels[:, None])[:, 0]
        nearest = distances[table].masked_fill(unavailable, torch.inf).argmin(1, keepdim=True)
        unavailable = unavailable.scatter(1, nearest, True)
        chosen.append(table.gather(1, nearest))
        sums = sums + embedded[chosen[-1][:, 0]]
    return torch.cat(chosen, 1).flatten()


@dataclass(frozen=True, kw_only=True)
class Herding(Condensation):
    """Real images whose mean embedding follows the mean of their class; the selection order makes sets nested in `ipc`.

    The embedding is the flattened last map of a ConvNet. It is trained for a few epochs on the same real images by SGD
    with momentum 0.9 and a learning rate that decays to 0, shuffled by the trial's seed: our choice. It is never the
    teacher.

    In segmentation all images are one group, whose mean the selected images follow, and the ConvNet learns which of the
    K classes an image shows, by binary cross-entropy: our choice.
    """

    tasks = BOTH
    paper = "Welling, ICML 2009"
    ours = ("epochs", "batch", "lr", "width", "depth")
    name: Literal["herding"] = "herding"
    epochs: int = 5
    """Training epochs of the ConvNet; 0 leaves it at its initialisation."""
    batch: int = 64
    """Largest number of images per step."""
    lr: float = 0.02
    """Learning rate of the first step."""
    width: int = 32
    """Channels of the ConvNet."""
    depth: int = 3
    """Blocks of the ConvNet; each halves the image. Fewer for images below 16x16, whose last map would have a single
    position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, "condensation.epochs", self.epochs, "0 or more")
        require(self.batch >= 1, "condensation.batch", self.batch, "1 or more")
        require(0 < self.lr < math.inf, "condensation.lr", self.lr, "more than 0, and finite")
        ConvNet(width=self.width, depth=self.depth)  # has bounds of its own

    def condense(
        self, real: Samples, *, num_classes: int, rng: Streams, on_step: OnStep = no_bar, **_: object
    ) -> Samples:
        """Train the embedding, then select.

        Raises `InputError` if there are too few images, `NonFiniteError` if the training diverges.
        """
        first_rows(real.labels, self.ipc, num_classes)  # refuses a class with too few images before the training
        network = fresh_convnet(real.images, num_classes, "condenser", rng, width=self.width, depth=self.depth)
        labels, groups, size = real.labels, num_classes, BATCH
        if dense := labels.ndim > 1:
            labels, groups = labels.new_zeros(len(labels)), 1
            size = max(1, PIXELS // real.labels[0].numel())
        if self.epochs:
            self._train(network, _with_presence(real, num_classes) if dense else real, rng, on_step)
        with torch.no_grad():
            embedded = torch.cat([network.embed(part) for part in real.images.split(size)])
        rows = herd(embedded, labels, self.ipc, groups)
        return unseen(real.images[rows], real.labels[rows])

    def _train(self, network: ConvNetModule, real: Samples, rng: Streams, on_step: OnStep) -> None:
        recipe = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "momentum": 0.9, "linear_decay": True}
        loss_of = F.binary_cross_entropy_with_logits if real.labels.is_floating_point() else F.cross_entropy
        epochs, stream = count(1), rng["condensation"]
        on_epoch = lambda: on_step(next(epochs), self.epochs)  # noqa: E731
        train(network, real, **recipe, loss_of=loss_of, on_epoch=on_epoch, rng=stream)


def _with_presence(real: Samples, num_classes: int) -> Samples:
    """Return the images with labels (N, K) float32: 1 for each class that a pixel of labels (N, H, W) has, else 0."""
    return unseen(real.images, (pixel_counts(real.labels, num_classes) > 0).float())
