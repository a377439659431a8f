"""Dataset Condensation with Distribution Matching (Zhao & Bilen, WACV 2023, arXiv:2110.04181).

Letters: K classes, N real and M synthetic images a class, B = K x N or K x M, C channels, H W height and width,
D features.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.method import Meter, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.core.view import OnStep
from condkd_ray.methods.condensation.condensation import class_table, draw_per_class
from condkd_ray.methods.condensation.joint import Joint
from condkd_ray.models.convnet import ConvNetModule


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
class DistributionMatching(Joint):
    r"""Pixels whose class means agree with the real ones in the eyes of many random networks.

    Minimises over images S, starting from real ones, each step for a new random ConvNet \phi and augmentation A:
    \sum_k \| mean_{x in R_k} \phi(A(x)) - mean_{s in S_k} \phi(A(s)) \|^2. Pixels are never clamped.

    Departs from the official code: the defaults are for a CPU (there: 20 000 iterations, 256 real images, width 128);
    one draw of A serves all classes of an iteration, so that they go through the network as one batch (there: one
    draw a class); `condensed_together`; and shallower networks for tiny images.
    """

    paper = "Zhao and Bilen, WACV 2023"
    ours = ("condensed_together", "prefixes", "iterations", "real_batch", "width")
    name: Literal["distribution_matching"] = "distribution_matching"
    prefixes: bool = True
    """Match the mean of every prefix of a class, not of all its images alone. Our choice: the first of ten images that
    match only together is worse than a random real one (`experiments/LOG.md`). False is DM as published."""
    iterations: int = 100
    """Optimiser steps, each with a network of its own."""
    real_batch: int = 64
    """Real images per class and step, or as many as the smallest class has."""
    augment: Literal["dsa", "none"] = "dsa"
    """The same randomly drawn augmentation on real and synthetic images, or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.real_batch >= 1, "condensation.real_batch", self.real_batch, "1 or more")

    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """Each step for a network of its own. Raises `NonFiniteError`."""
        images = start.images.clone().requires_grad_(True)
        optimizer = torch.optim.SGD([images], self.lr, momentum=self.momentum)
        table, counts = class_table(real.labels, num_classes)
        num_real = min(self.real_batch, int(counts.min()))
        meter = Meter("condensation")
        for iteration in range(self.iterations):
            network = self.network(start.images, num_classes, f"condenser/{iteration}", rng).requires_grad_(False)
            batch = real.images[draw_per_class(table, counts, num_real, rng["condensation/real"]).flatten()]
            loss = self._loss(network, batch, images, num_classes, flip_ok=flip_ok, rng=rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meter.add(matching=loss)
            on_step(iteration + 1, self.iterations)
        meter.read()  # raises where a loss was not finite, naming the iteration
        return images.detach()

    def _loss(
        self, network: ConvNetModule, real: Tensor, images: Tensor, num_classes: int, *, flip_ok: bool, rng: Streams
    ) -> Tensor:
        real, images = self.siamese(real, images, flip_ok=flip_ok, rng=rng)
        with torch.no_grad():
            target = network.embed(real)
        embedded = network.embed(images)
        loss = prefix_matching_loss if self.prefixes else matching_loss
        return loss(target.unflatten(0, (num_classes, -1)), embedded.unflatten(0, (num_classes, -1)))
