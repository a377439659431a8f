"""Dataset Condensation with Distribution Matching (Zhao & Bilen, WACV 2023, arXiv:2110.04181).

Letters: K classes, N real and M synthetic images a class, B = K x N or K x M, C channels, H W height and width,
D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from condkd_ray.augment import dsa
from condkd_ray.condensation.condensation import (
    Condensation,
    class_table,
    draw_per_class,
    first_per_class,
    random_per_class,
    require_ipc,
)
from condkd_ray.condensation.training import convnet_for
from condkd_ray.method import Meter, require
from condkd_ray.networks.convnet import ConvNet, ConvNetModule
from condkd_ray.samples import Samples, unseen
from condkd_ray.streams import Streams


def matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over classes of the squared distance of mean embeddings: (K, N, D) and (K, M, D) to a scalar.

    Summed over the features too, as in the official code, where the paper writes a norm.
    """
    return (real.mean(1) - synthetic.mean(1)).square().sum()


def prefix_matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """`matching_loss` of the first 1, 2, ... M synthetic images of each class, averaged; (K, N, D), (K, M, D)."""
    counts = torch.arange(1, synthetic.shape[1] + 1, device=synthetic.device).view(1, -1, 1)
    return (real.mean(1, keepdim=True) - synthetic.cumsum(1) / counts).square().sum() / synthetic.shape[1]


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(Condensation):
    r"""Pixels whose class means agree with the real ones in the eyes of many random networks.

    Minimises over images S, starting from real ones, each step for a new random ConvNet \phi and augmentation A:
    \sum_k \| mean_{x in R_k} \phi(A(x)) - mean_{s in S_k} \phi(A(s)) \|^2. Pixels are never clamped.

    Departs from the official code: the defaults are for a CPU (there: 20 000 iterations, 256 real images, width 128);
    one draw of A serves all classes of an iteration, so that they go through the network as one batch (there: one
    draw a class); `condensed_together`; and shallower networks for tiny images.
    """

    paper: ClassVar[str] = "Zhao and Bilen, WACV 2023"
    ours: ClassVar[tuple[str, ...]] = ("condensed_together", "prefixes", "iterations", "real_batch", "width")
    name: Literal["distribution_matching"] = "distribution_matching"
    condensed_together: int = 10
    """Images per class optimised together, at least `ipc`; a smaller ipc takes the first ones of each class.

    Our choice: the images of one optimisation depend on each other, and sets of one seed are to be nested.
    """
    prefixes: bool = True
    """Match the mean of every prefix of a class, not of all its images alone. Our choice: the first of ten images that
    match only together is worse than a random real one (`experiments/LOG.md`). False is DM as published."""
    iterations: int = 100
    """Optimiser steps, each with a network of its own."""
    real_batch: int = 64
    """Real images per class and step, or as many as the smallest class has."""
    width: int = 32
    """Channels of the random ConvNets."""
    depth: int = 3
    """Their blocks; each halves the image. Fewer on images below 16x16, where the last map would be a single place."""
    lr: float = 1.0
    momentum: float = 0.5
    augment: Literal["dsa", "none"] = "dsa"
    """The same randomly drawn augmentation on real and synthetic images, or none."""

    def __post_init__(self) -> None:
        require_ipc(self.ipc)
        together = self.condensed_together
        require(together >= self.ipc, "condensation.condensed_together", together, f"{self.ipc} or more, the ipc")
        for field in ("iterations", "real_batch"):
            require(getattr(self, field) >= 1, f"condensation.{field}", getattr(self, field), "1 or more")
        require(self.lr > 0, "condensation.lr", self.lr, "more than 0")
        require(0 <= self.momentum < 1, "condensation.momentum", self.momentum, "0 <= momentum < 1")
        ConvNet(width=self.width, depth=self.depth)  # has bounds of its own

    def whole(self) -> Self:
        """All that are optimised together."""
        return replace(self, ipc=self.condensed_together)

    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip_ok: bool,
        rng: Streams,
    ) -> Samples:
        """Optimise `condensed_together` images of each class; the first `ipc` of each. Raises `NonFiniteError` too."""
        rows = random_per_class(real.labels, self.condensed_together, num_classes, rng["condensation"])
        images = self._optimise(real.images[rows], real, num_classes, flip_ok=flip_ok, rng=rng)
        return first_per_class(unseen(images, real.labels[rows]), self.ipc, num_classes)

    def _optimise(self, start: Tensor, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams) -> Tensor:
        images = start.clone().requires_grad_(True)
        optimizer = torch.optim.SGD([images], self.lr, momentum=self.momentum)
        table, counts = class_table(real.labels, num_classes)
        num_real = min(self.real_batch, int(counts.min()))
        meter = Meter("condensation")
        for iteration in range(self.iterations):
            network = self._network(iteration, start, num_classes, rng)
            batch = real.images[draw_per_class(table, counts, num_real, rng["condensation/real"]).flatten()]
            loss = self._loss(network, batch, images, num_classes, flip_ok=flip_ok, rng=rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meter.add(matching=loss)
        meter.read()  # raises where a loss was not finite, naming the iteration
        return images.detach()

    def _network(self, iteration: int, images: Tensor, num_classes: int, rng: Streams) -> ConvNetModule:
        channels, height, width = images.shape[1:]
        network = convnet_for((channels, height, width), width=self.width, depth=self.depth)
        with rng.forked(f"init/condenser/{iteration}"):
            module = network.build((channels, height, width), num_classes)
        assert isinstance(module, ConvNetModule)
        return module.to(images.device).requires_grad_(False)

    def _loss(
        self, network: ConvNetModule, real: Tensor, images: Tensor, num_classes: int, *, flip_ok: bool, rng: Streams
    ) -> Tensor:
        if self.augment == "dsa":
            name = "augment/condensation"
            both = torch.cat([real, images])
            both = dsa(both, rng=rng[name], choice=rng.host(name), flip=flip_ok, siamese=True)
            real, images = both.split([len(real), len(images)])
        with torch.no_grad():
            target = network.embed(real)
        embedded = network.embed(images)
        loss = prefix_matching_loss if self.prefixes else matching_loss
        return loss(target.unflatten(0, (num_classes, -1)), embedded.unflatten(0, (num_classes, -1)))
