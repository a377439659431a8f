"""Dataset Distillation by Matching Training Trajectories (Cazenavette et al., CVPR 2022), without ZCA whitening.

Settings read in the authors' code: `methods.md` 6.4, `peers.md` B.2 and B.4. Letters: K classes, B synthetic images a
step, C channels, H W height and width, P parameters, E epochs of an expert, N steps, M epochs that they match.
"""

import math
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from condkd_ray.core.environment import free_bytes
from condkd_ray.core.method import Meter, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.methods.condensation.condensation import convnet_for, train
from condkd_ray.methods.condensation.matching import Joint
from condkd_ray.models.convnet import ConvNet

FLOATS_AN_ACTIVATION, FLOATS_A_PARAMETER, FLOATS_A_PIXEL = 6.5, 2.5, 2.0
Augment = Callable[[Tensor, str], Tensor]
"""Images and what they are used for, which names the stream, to images."""


def trajectory_loss(reached: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Squared distance to where the expert went, in units of the squared distance it went; parameters (P,) each."""
    return (reached - target).square().sum() / (start - target).square().sum()


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(Joint):
    r"""Pixels on which a few SGD steps lead a network where many on the real images did.

    Experts are ConvNets trained on the real images, each from a seed of its own; \theta*_t are their parameters after
    epoch t. Minimises over images S, starting from real ones, and a step size, each time for a random expert and t:
    \| \theta_N - \theta*_{t+M} \|^2 / \| \theta*_t - \theta*_{t+M} \|^2, where \theta_N is reached from \theta*_t by N
    steps of SGD on S. Pixels are never clamped; the learnt step size is not kept.

    Departs from the official code: the defaults are for a CPU (there: 100 experts of 50 epochs, N = 20, M = 3, t up to
    20 or 25, 5000 iterations, width 128); no ZCA; one learning rate for images of any number; `condensed_together` and
    `prefixes`; shallower networks for tiny images.
    """

    paper = "Cazenavette et al., CVPR 2022"
    ours = (
        *("condensed_together", "prefixes", "iterations", "experts", "expert_epochs", "expert_batch", "expert_lr"),
        *("steps", "ahead", "max_start", "batch", "lr", "momentum", "width", "augment"),
    )
    name: Literal["trajectory_matching"] = "trajectory_matching"
    prefixes: bool = True
    """Each iteration unrolls on the first images of each class, a random number of them; False, on all, as published.

    Our choice, so that the first ones are a set of their own. Digits, test accuracy of a ConvNet trained on the set
    alone, of 1 and of 10 images a class: 0.882 and 0.951, without prefixes 0.801 and 0.959 (3 seeds, standard
    deviations 0.02 and 0.01, without 0.07 and 0.02); random real ones 0.742 and 0.949 (0.08 and 0.02).
    """
    iterations: int = 200
    """Steps of the images (5000 in the official code)."""
    experts: int = 4
    """Networks trained on the real images (100 in the official code)."""
    expert_epochs: int = 15
    """Of their training (50 in the official code)."""
    expert_batch: int = 64
    expert_lr: float = 0.03
    """Of their training, plain SGD; the step size starts here too (0.01 in the official code)."""
    steps: int = 10
    """N, the SGD steps on the synthetic images (20 in the official code); they take memory, each as much."""
    ahead: int = 2
    """M, epochs of the expert that those steps shall make up for (3 in the official code)."""
    max_start: int = 10
    """Largest t (20 or 25 in the official code); the later an epoch, the less is learnt in it."""
    batch: int = 0
    """Synthetic images a step, drawn without replacement until all were seen (`batch_syn`); 0: all of them."""
    lr: float = 10.0
    """Of the images (1000 in the official code). Of 10, 30 and 100 the best on validation images of digits: mean
    accuracy of a ConvNet trained on 1 and on 10 images a class alone 0.924, 0.920 and 0.915 (seeds 100 and 101)."""
    step_lr: float = 1e-5
    """Of the step size."""
    momentum: float = 0.5
    """Of both."""
    augment: Literal["dsa", "none"] = "dsa"
    """One randomly chosen augmentation a step, each image by draws of its own, or none; the experts' likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("experts", "expert_epochs", "expert_batch", "steps", "ahead"):
            require(getattr(self, field) >= 1, f"condensation.{field}", getattr(self, field), "1 or more")
        require(0 < self.expert_lr < math.inf, "condensation.expert_lr", self.expert_lr, "more than 0, and finite")
        require(0 <= self.step_lr < math.inf, "condensation.step_lr", self.step_lr, "0 or more, and finite")
        require(self.batch >= 0, "condensation.batch", self.batch, "1 or more, or 0 for all images")
        epochs, last = self.expert_epochs, self.expert_epochs - self.ahead
        require(last >= 0, "condensation.ahead", self.ahead, f"1 to {epochs}, the epochs of an expert")
        require(0 <= self.max_start <= last, "condensation.max_start", self.max_start, f"0 to {last}, as experts end")

    def require_memory(self, image_shape: tuple[int, int, int], num_classes: int, free: int) -> None:
        """Raise `InputError` where trajectories and unrolled steps are estimated to take more than `free` bytes."""

        def needed(steps: int, batch: int, width: int) -> int:
            network = convnet_for(image_shape, width=width, depth=self.depth)
            kept = self.experts * (self.expert_epochs + 1)
            return unrolled_bytes(network, image_shape, num_classes, steps=steps, batch=batch, kept=kept)

        images = num_classes * self.condensed_together
        require_memory(needed, free, steps=self.steps, batch=min(self.batch or images, images), width=self.width)

    def _expert(
        self,
        number: int,
        real: Samples,
        num_classes: int,
        augment: Augment,
        rng: Streams,
        on_step: OnStep = no_bar,
    ) -> Tensor:
        """A trajectory (E + 1, P): the parameters before training and after each epoch."""
        name = f"expert/{number}"
        network = self.network(real.images, num_classes, name, rng)
        trajectory = [parameters_to_vector(network.parameters()).detach()]

        def on_epoch() -> None:
            trajectory.append(parameters_to_vector(network.parameters()).detach())
            on_step(number * self.expert_epochs + len(trajectory) - 1, self._steps_in_all)

        train(
            network,
            real,
            epochs=self.expert_epochs,
            batch=self.expert_batch,
            lr=self.expert_lr,
            augment=lambda images: augment(images, name),
            on_epoch=on_epoch,
            rng=rng[name],
        )
        return torch.stack(trajectory)

    def optimise(
        self, start: Samples, real: Samples, num_classes: int, *, flip_ok: bool, rng: Streams, on_step: OnStep
    ) -> Tensor:
        """Experts first, then the images.

        Raises `InputError` where that needs more memory than is free, `NonFiniteError` on divergence.
        """
        channels, height, width = start.images.shape[1:]
        self.require_memory((channels, height, width), num_classes, free_bytes(start.images.device))

        def augment(images: Tensor, use: str) -> Tensor:
            return self.augmented(images, use, flip_ok=flip_ok, rng=rng)

        every = range(self.experts)
        experts = [self._expert(number, real, num_classes, augment, rng, on_step) for number in every]
        network = self.network(start.images, num_classes, "condenser", rng)
        images = start.images.clone().requires_grad_()
        step_size = torch.tensor(self.expert_lr, device=images.device, requires_grad=True)
        groups = [{"params": [images], "lr": self.lr}, {"params": [step_size], "lr": self.step_lr}]
        optimizer = torch.optim.SGD(groups, momentum=self.momentum)
        meter = Meter("condensation")
        for iteration in range(self.iterations):
            expert, begin, first = self._draw(rng.host("condensation"))
            before, after = experts[expert][begin], experts[expert][begin + self.ahead]
            rows = torch.arange(len(images), device=images.device).view(num_classes, -1)[:, :first].flatten()
            parts = [rows[part] for part in self._batches(len(rows), rng["condensation/batches"])]
            batches = ((augment(images[part], "condensation"), start.labels[part]) for part in parts)
            loss = trajectory_loss(unroll(network, before, step_size, batches), before, after)
            images.grad, step_size.grad = torch.autograd.grad(loss, [images, step_size])
            optimizer.step()
            meter.add(trajectory=loss, step_size=step_size)
            on_step(self.experts * self.expert_epochs + iteration + 1, self._steps_in_all)
        meter.read()  # raises where a loss was not finite, naming the iteration
        return images.detach()

    @property
    def _steps_in_all(self) -> int:
        """Epochs of experts, and iterations."""
        return self.experts * self.expert_epochs + self.iterations

    def _draw(self, rng: torch.Generator) -> tuple[int, int, int]:
        """An expert, the epoch it starts from, and how many images of each class are used."""
        ends = (self.experts, self.max_start + 1, self.condensed_together)
        expert, begin, place = (int(torch.randint(end, (1,), generator=rng)) for end in ends)
        return expert, begin, place + 1 if self.prefixes else self.condensed_together

    def _batches(self, count: int, rng: torch.Generator) -> list[Tensor]:
        """`steps` batches of numbers below `count`: parts of permutations, a new one whenever all were used."""
        size = min(self.batch or count, count)
        if size == count:
            return [torch.arange(count, device=rng.device)] * self.steps
        rounds = -(-self.steps // (count // size))
        orders = (torch.randperm(count, generator=rng, device=rng.device) for _ in range(rounds))
        parts = [part for order in orders for part in order.split(size) if len(part) == size]
        return parts[: self.steps]


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
