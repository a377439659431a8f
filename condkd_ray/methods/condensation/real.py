"""Real images: all of them, random ones, or those that herding chooses.

Random ones are no condensation, and the control that every condensed set has to beat; all are the upper reference,
distillation with the data that is not there. Herding (Welling, ICML 2009) chooses one by one, so that the mean of those
chosen follows the mean of their class.

Letters: N images, K classes, D features.
"""

from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.core.view import OnStep, unheard
from condkd_ray.methods.condensation.condensation import (
    Condensation,
    class_table,
    first_rows,
    fresh_convnet,
    random_per_class,
    train,
)
from condkd_ray.models.plain import ConvNet, ConvNetModule


@dataclass(frozen=True, kw_only=True)
class RandomReal(Condensation):
    """`ipc` real images of each class, drawn by the trial's seed (the "few-shot" arm of the literature)."""

    name: Literal["random_real"] = "random_real"

    def condense(self, real: Samples, *, num_classes: int, rng: Streams, **_: object) -> Samples:
        """Random rows of each class; nested over `ipc`."""
        rows = random_per_class(real.labels, self.ipc, num_classes, rng["condensation"])
        return unseen(real.images[rows], real.labels[rows])


@dataclass(frozen=True, kw_only=True)
class AllReal(Condensation):
    """Every real image, class after class. Not nested in anything, and as many of each class as there are."""

    name: Literal["all_real"] = "all_real"
    ipc: Literal[0] = 0
    """It has none of its own: 0 stands for "all"."""

    def __post_init__(self) -> None:
        require(self.ipc == 0, "condensation.ipc of all_real", self.ipc, "0, which stands for all images")

    def condense(self, real: Samples, **_: object) -> Samples:
        """All rows, sorted by class."""
        rows = real.labels.argsort(stable=True)
        return unseen(real.images[rows], real.labels[rows])


BATCH = 512
"""Images embedded at a time; it only bounds memory."""


def herd(embedded: Tensor, labels: Tensor, ipc: int, num_classes: int) -> Tensor:
    r"""Row numbers (K x ipc,), class-major, in the order of choice, of embeddings (N, D) with their classes (N,).

    The next image of a class is the one with which the mean of those chosen is nearest to the mean \mu of all:
    the t-th is argmin_x \| t \mu - \sum_{s < t} \phi(x_s) - \phi(x) \|, never one that was chosen before; the first
    in the order of rows among equals. A smaller `ipc` therefore gives the first ones of a larger.

    Every class must have `ipc` images or more.
    """
    table, counts = class_table(labels, num_classes)
    sums = torch.zeros(num_classes, embedded.shape[1], dtype=embedded.dtype, device=embedded.device)
    means = sums.index_add(0, labels, embedded) / counts[:, None]
    squares = embedded.square().sum(1)
    shut = torch.arange(table.shape[1], device=labels.device) >= counts[:, None]
    chosen = []
    for place in range(1, ipc + 1):
        wanted = place * means - sums
        # | wanted - x |^2 less | wanted |^2, which is the same for all images of a class.
        distances = squares - 2 * (embedded @ wanted.T).gather(1, labels[:, None])[:, 0]
        nearest = distances[table].masked_fill(shut, torch.inf).argmin(1, keepdim=True)
        shut = shut.scatter(1, nearest, True)
        chosen.append(table.gather(1, nearest))
        sums = sums + embedded[chosen[-1][:, 0]]
    return torch.cat(chosen, 1).flatten()


@dataclass(frozen=True, kw_only=True)
class Herding(Condensation):
    """Real images whose mean embedding follows that of their class. Nested over `ipc` by the way they are chosen.

    The embedding is the flattened last map of a ConvNet, trained for a few epochs on the same real images by SGD with
    momentum 0.9 and a learning rate that falls to 0, shuffled by the trial's seed: our choice. It is never the teacher.
    """

    paper = "Welling, ICML 2009"
    ours = ("epochs", "batch", "lr", "width", "depth")
    name: Literal["herding"] = "herding"
    epochs: int = 5
    """Of the ConvNet's training; 0 leaves it as it was initialised."""
    batch: int = 64
    """Images a step, at most."""
    lr: float = 0.02
    """At the first step."""
    width: int = 32
    """Channels of the ConvNet."""
    depth: int = 3
    """Its blocks; each halves the image. Fewer on images below 16x16, where the last map would be a single place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, "condensation.epochs", self.epochs, "0 or more")
        require(self.batch >= 1, "condensation.batch", self.batch, "1 or more")
        require(self.lr > 0, "condensation.lr", self.lr, "more than 0")
        ConvNet(width=self.width, depth=self.depth)  # has bounds of its own

    def condense(
        self, real: Samples, *, num_classes: int, rng: Streams, on_step: OnStep = unheard, **_: object
    ) -> Samples:
        """Train the embedding, then choose. Raises `NonFiniteError` where the training diverges."""
        first_rows(real.labels, self.ipc, num_classes)  # refuses a class with too few images before the training
        network = fresh_convnet(real.images, num_classes, "condenser", rng, width=self.width, depth=self.depth)
        if self.epochs:
            self._train(network, real, rng, on_step)
        with torch.no_grad():
            embedded = torch.cat([network.embed(part) for part in real.images.split(BATCH)])
        rows = herd(embedded, real.labels, self.ipc, num_classes)
        return unseen(real.images[rows], real.labels[rows])

    def _train(self, network: ConvNetModule, real: Samples, rng: Streams, on_step: OnStep) -> None:
        recipe = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "momentum": 0.9, "falls": True}
        epochs = count(1)
        train(network, real, **recipe, on_epoch=lambda: on_step(next(epochs), self.epochs), rng=rng["condensation"])
