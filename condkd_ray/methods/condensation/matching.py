"""Condensers that optimise the images of all classes together: their base, distribution and gradient matching.

- Dataset Condensation with Distribution Matching (DM: Zhao & Bilen, WACV 2023, arXiv:2110.04181).
- Dataset Condensation with Gradient Matching (DC: Zhao et al., ICLR 2021), with Differentiable Siamese Augmentation
  (DSA: Zhao & Bilen, ICML 2021).

Settings follow the released code of DC, DSA and DM. Letters: K classes, N real and M synthetic images per class, C
channels, H W height and width, D features, O output channels.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from condkd_ray.core.method import Meter, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.data.augment import dsa
from condkd_ray.methods.condensation.condensation import (
    Condensation,
    class_table,
    draw_per_class,
    first_per_class,
    fresh_convnet,
    random_per_class,
    train,
)
from condkd_ray.models.convnet import ConvNet, ConvNetModule


@dataclass(frozen=True, kw_only=True)
class Joint(Condensation):
    """Base class of the condensers whose images depend on each other; pixels are never clamped."""

    condensed_together: int = 10
    """Images per class optimised together, at least `ipc`; a smaller ipc takes the first ones of each class.

    Our choice: the images of one optimisation depend on each other, and sets of one seed should be nested."""
    prefixes: bool = True
    """True if the first images of each class are optimised as sets of their own, too (our choice)."""
    iterations: int = 100
    """Number of iterations; the subclass documents what one consists of."""
    lr: float = 1.0
    """Learning rate of the images."""
    momentum: float = 0.5
    """Momentum of the images."""
    width: int = 32
    """Channels of the ConvNets."""
    depth: int = 3
    """Blocks of the ConvNets; each halves the image. Fewer on images below 16x16, whose last map would be a single
    position."""
    augment: Literal["dsa", "none"] = "dsa"
    """Random augmentation of the images: DSA, or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        together = self.condensed_together
        require(together >= self.ipc, "condensation.condensed_together", together, f"{self.ipc} or more, the ipc")
        require(self.iterations >= 1, "condensation.iterations", self.iterations, "1 or more")
        require(0 < self.lr < math.inf, "condensation.lr", self.lr, "more than 0, and finite")
        require(0 <= self.momentum < 1, "condensation.momentum", self.momentum, "0 <= momentum < 1")
        ConvNet(width=self.width, depth=self.depth)  # has bounds of its own

    def cached_config(self) -> Self:
        """Return the config of all images that are optimised together."""
        return replace(self, ipc=self.condensed_together)

    @abstractmethod
    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """Optimise the images and return them, (K x M, C, H, W), class-major. May raise `NonFiniteError`.

        `start`: real images, as many as are optimised.
        """

    @final
    def condense(
        self,
        real: Samples,
        *,
        num_classes: int,
        flip_ok: bool,
        rng: Streams,
        on_step: OnStep = no_bar,
        **_: object,
    ) -> Samples:
        """Optimise `condensed_together` images of each class and return the first `ipc` of each. See `optimise`."""
        rows = random_per_class(real.labels, self.condensed_together, num_classes, rng["condensation"])
        start = unseen(real.images[rows], real.labels[rows])
        images = self.optimise(start, real, num_classes, flip_ok=flip_ok, rng=rng, on_step=on_step)
        return first_per_class(unseen(images, start.labels), self.ipc, num_classes)

    def network(self, images: Tensor, num_classes: int, name: str, rng: Streams) -> ConvNetModule:
        """Return a new ConvNet for `images`, from stream `init/<name>`."""
        return fresh_convnet(images, num_classes, name, rng, width=self.width, depth=self.depth)

    def augmented(self, images: Tensor, use: str, *, flip_ok: bool, rng: Streams) -> Tensor:
        """Return images under one random augmentation with separate parameters for each, from stream `augment/<use>`.

        With `augment: none` the images are returned as they are.
        """
        if self.augment == "none":
            return images
        name = f"augment/{use}"
        return dsa(images, rng=rng[name], choice=rng.host(name), flip=flip_ok)

    def siamese(self, real: Tensor, images: Tensor, *, flip_ok: bool, rng: Streams) -> tuple[Tensor, Tensor]:
        """Return both under the same random augmentation from stream `augment/condensation`, or as they are."""
        if self.augment == "none":
            return real, images
        name = "augment/condensation"
        both = torch.cat([real, images])
        both = dsa(both, rng=rng[name], choice=rng.host(name), flip=flip_ok, siamese=True)
        real, images = both.split([len(real), len(images)])
        return real, images


def matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the sum over classes of the squared distance of mean embeddings: (K, N, D) and (K, M, D) to a scalar.

    It is summed over the features too, as in DM's code; the paper writes a norm.
    """
    return (real.mean(1) - synthetic.mean(1)).square().sum()


def prefix_matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the mean `matching_loss` of the first 1, 2, ... M synthetic images of each class; (K, N, D), (K, M, D)."""
    counts = torch.arange(1, synthetic.shape[1] + 1, device=synthetic.device).view(1, -1, 1)
    return (real.mean(1, keepdim=True) - synthetic.cumsum(1) / counts).square().sum() / synthetic.shape[1]


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(Joint):
    r"""Matches the class means of synthetic and real images in the embeddings of many random networks.

    Minimises over images S, starting from real ones, each step for a new random ConvNet \phi and augmentation A: \sum_k
    \| mean_{x in R_k} \phi(A(x)) - mean_{s in S_k} \phi(A(s)) \|^2. Pixels are never clamped.

    Departs from DM's code: the defaults are for a CPU (there: 20 000 iterations, 256 real images, width 128); one draw
    of A serves all classes of an iteration, so that they pass through the network as one batch (there: one draw per
    class); `condensed_together`; and shallower networks for tiny images.
    """

    paper = "Zhao and Bilen, WACV 2023"
    ours = ("condensed_together", "prefixes", "iterations", "real_batch", "width")
    name: Literal["distribution_matching"] = "distribution_matching"
    prefixes: bool = True
    """Match the mean of every prefix of a class rather than only the mean of all its images. Our choice: the first of
    ten images that match only together is worse than a random real one (`experiments/LOG.md`). False is DM as
    published."""
    iterations: int = 100
    """Optimiser steps, each with a new network."""
    real_batch: int = 64
    """Real images per class and step, or as many as the smallest class has."""
    augment: Literal["dsa", "none"] = "dsa"
    """The same random augmentation on real and synthetic images, or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.real_batch >= 1, "condensation.real_batch", self.real_batch, "1 or more")

    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """Take one step per network. Raises `NonFiniteError`."""
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
        meter.read()  # raises if a loss was not finite, naming the iteration
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


def class_gradients(network: nn.Module, images: Tensor, *, differentiable: bool) -> list[Tensor]:
    """Return gradients of each class's mean cross-entropy by each layer's weights: (K, N, C, H, W) to (K, O, ...) each.

    Weights are the parameters with more than one dimension: those of convolutions and linear layers, without biases and
    normalisation layers. `differentiable`: the gradients can be differentiated with respect to `images`.
    """
    weights = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.ndim > 1}

    def of(label: int) -> tuple[Tensor, ...]:
        logits = functional_call(network, weights, (images[label],)).float()
        loss = F.cross_entropy(logits, torch.full_like(logits[:, 0], label, dtype=torch.int64))
        return torch.autograd.grad(loss, list(weights.values()), create_graph=differentiable)

    # Class after class: on one core vmap takes 1.4 to 3 times as long for the real images, which dominate the time.
    return [torch.stack(layer) for layer in zip(*map(of, range(len(images))), strict=True)]


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Return the sum over layers, classes and output channels of 1 - cosine: pairs of (K, O, ...) to a scalar.

    A channel with a zero gradient counts 1 and contributes no gradient.
    """
    cosines = [
        F.cosine_similarity(there.flatten(2), here.flatten(2), dim=2)
        for there, here in zip(real, synthetic, strict=True)
    ]
    return torch.stack([(1 - cosine).sum() for cosine in cosines]).sum()


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Joint):
    """Matches the weight gradients of synthetic and real images of each class.

    Each iteration has a new ConvNet. `outer` times, the images take a step that lowers the `gradient_distance` between
    real and synthetic images, summed over the classes; then the network is trained on the synthetic images for `inner`
    epochs, so that gradients are matched along its trajectory too. Pixels are never clamped.

    Departs from the code of DC and DSA: the defaults are for a CPU (there: 1000 iterations, 256 real images, width 128;
    `outer` and `inner` by ipc: 1 and 1 for 1, 10 and 50 for 10, 50 and 10 for 50); one draw of the augmentation serves
    all classes of a step (there: one draw per class); `condensed_together` and `prefixes`; shallower networks for tiny
    images.
    """

    paper = "Zhao et al., ICLR 2021; Zhao and Bilen, ICML 2021"
    ours = ("condensed_together", "prefixes", "iterations", "outer", "inner", "real_batch", "net_batch", "width")
    name: Literal["gradient_matching"] = "gradient_matching"
    prefixes: bool = True
    """Each iteration uses the first images of each class, a random number of them; False: all, as published.

    Our choice, so that the first images form a set by themselves."""
    iterations: int = 40
    """Number of networks (1000 in the code of DC and DSA)."""
    outer: int = 5
    """Steps of the images for each network (10 in the code of DC and DSA for ipc 10)."""
    inner: int = 10
    """Epochs of the network on the synthetic images after each step (50 in the code of DC and DSA for ipc 10)."""
    real_batch: int = 64
    """Real images per class and step (256 in the code of DC and DSA), or as many as the smallest class has."""
    net_lr: float = 0.01
    """Learning rate of the network, plain SGD."""
    net_batch: int = 256
    """Synthetic images per step of the network, at most."""
    lr: float = 0.1
    """Learning rate of the images."""
    augment: Literal["dsa", "none"] = "dsa"
    """DSA: the same random augmentation on real and synthetic images. None: DC as first published."""
    start: Literal["real", "noise"] = "real"
    """Initial images: real ones (DSA) or normal noise (DC)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("outer", "real_batch", "net_batch"):
            require(getattr(self, field) >= 1, f"condensation.{field}", getattr(self, field), "1 or more")
        require(self.inner >= 0, "condensation.inner", self.inner, "0 or more")
        require(0 < self.net_lr < math.inf, "condensation.net_lr", self.net_lr, "more than 0, and finite")

    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """Take `outer` steps for each network. Raises `NonFiniteError`."""
        images = start.images.clone()
        if self.start == "noise":
            images = torch.randn(images.shape, generator=rng["condensation/noise"], device=images.device)
        images.requires_grad_()
        optimizer = torch.optim.SGD([images], self.lr, momentum=self.momentum)
        table, counts = class_table(real.labels, num_classes)
        num_real = min(self.real_batch, int(counts.min()))
        meter = Meter("condensation")
        for iteration in range(self.iterations):
            network = self.network(start.images, num_classes, f"condenser/{iteration}", rng)
            used = self._used(num_classes, rng).to(images.device)
            for step in range(self.outer):
                if step and self.inner:
                    self._train(network, unseen(images.detach()[used], start.labels[used]), flip_ok=flip_ok, rng=rng)
                batch = real.images[draw_per_class(table, counts, num_real, rng["condensation/real"]).flatten()]
                loss = self._loss(network, batch, images[used], num_classes, flip_ok=flip_ok, rng=rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meter.add(matching=loss)
            on_step(iteration + 1, self.iterations)
        meter.read()  # raises if a loss was not finite, naming the step
        return images.detach()

    def _used(self, num_classes: int, rng: Streams) -> Tensor:
        """Return row numbers, class-major, of the images that an iteration uses."""
        every = torch.arange(num_classes * self.condensed_together).view(num_classes, -1)
        last = int(torch.randint(self.condensed_together, (1,), generator=rng.host("condensation")))
        return every[:, : last + 1 if self.prefixes else self.condensed_together].flatten()

    def _train(self, network: nn.Module, synthetic: Samples, *, flip_ok: bool, rng: Streams) -> None:
        train(
            network.requires_grad_(),
            synthetic,
            epochs=self.inner,
            batch=self.net_batch,
            lr=self.net_lr,
            augment=lambda images: self.augmented(images, "condenser", flip_ok=flip_ok, rng=rng),
            rng=rng["condensation/batches"],
        )

    def _loss(
        self, network: nn.Module, real: Tensor, images: Tensor, num_classes: int, *, flip_ok: bool, rng: Streams
    ) -> Tensor:
        real, images = self.siamese(real, images, flip_ok=flip_ok, rng=rng)
        target = class_gradients(network, real.detach().unflatten(0, (num_classes, -1)), differentiable=False)
        reached = class_gradients(network, images.unflatten(0, (num_classes, -1)), differentiable=True)
        return gradient_distance(target, reached)
