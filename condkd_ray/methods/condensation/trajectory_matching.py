"""Dataset Distillation by Matching Training Trajectories (Cazenavette et al., CVPR 2022), without ZCA whitening.

Settings follow the released code of this method (MTT). Letters: K classes, B synthetic images per step, C channels, H W
height and width, P parameters, E epochs of an expert, N steps, M epochs that they match.
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
from condkd_ray.core.units import byte_size
from condkd_ray.core.view import OnStep, no_bar
from condkd_ray.methods.condensation.condensation import convnet_for, train
from condkd_ray.methods.condensation.matching import Joint
from condkd_ray.models.convnet import ConvNet

FLOATS_AN_ACTIVATION, FLOATS_A_PARAMETER, FLOATS_A_PIXEL = 6.5, 2.5, 2.0
Augment = Callable[[Tensor, str], Tensor]
"""Maps images, and the name of their use, which selects the random stream, to images."""


def trajectory_loss(reached: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance to the expert's end point over the expert's squared distance; arguments are (P,)."""
    return (reached - target).square().sum() / (start - target).square().sum()


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(Joint):
    r"""A few SGD steps on these images change a network's weights as many steps on the real images do.

    Experts are ConvNets trained on the real images, each from its own seed; \theta*_t are their parameters after epoch
    t. Minimises over images S, starting from real ones, and a step size, each time for a random expert and t: \|
    \theta_N - \theta*_{t+M} \|^2 / \| \theta*_t - \theta*_{t+M} \|^2, where \theta_N is reached from \theta*_t by N
    steps of SGD on S. Pixels are never clamped; the learnt step size is not kept.

    Departs from MTT's code: the defaults are for a CPU (there: 100 experts of 50 epochs, N = 20, M = 3, t up to 20 or
    25, 5000 iterations, width 128); no ZCA; one learning rate for any number of images; `condensed_together` and
    `prefixes`; shallower networks for tiny images.
    """

    paper = "Cazenavette et al., CVPR 2022"
    ours = (
        *("condensed_together", "prefixes", "iterations", "experts", "expert_epochs", "expert_batch", "expert_lr"),
        *("steps", "ahead", "max_start", "batch", "lr", "momentum", "width", "augment"),
    )
    name: Literal["trajectory_matching"] = "trajectory_matching"
    prefixes: bool = True
    """Each iteration uses the first images of each class, a random number of them; False: all, as published.

    Our choice, so that the first images form a set by themselves. Digits, test accuracy of a ConvNet trained on the set
    only, with 1 and with 10 images per class: 0.882 and 0.951, without prefixes 0.801 and 0.959 (3 seeds, standard
    deviations 0.02 and 0.01, without 0.07 and 0.02); random real images 0.742 and 0.949 (0.08 and 0.02)."""
    iterations: int = 200
    """Steps of the images (5000 in MTT's code)."""
    experts: int = 4
    """Networks trained on the real images (100 in MTT's code)."""
    expert_epochs: int = 15
    """Training epochs of the experts (50 in MTT's code)."""
    expert_batch: int = 64
    """Images per training step of the experts."""
    expert_lr: float = 0.03
    """Learning rate of the experts, plain SGD, and initial step size (0.01 in MTT's code)."""
    steps: int = 10
    """N, the SGD steps on the synthetic images (20 in MTT's code); each takes the same amount of memory."""
    ahead: int = 2
    """M, the epochs of the expert that those steps must match (3 in MTT's code)."""
    max_start: int = 10
    """Largest t (20 or 25 in MTT's code); weights change less in later epochs."""
    batch: int = 0
    """Synthetic images per step, drawn without replacement until all were used (`batch_syn` in MTT's code); 0: all."""
    lr: float = 10.0
    """Learning rate of the images (1000 in MTT's code). The best of 10, 30 and 100 on validation images of digits: mean
    accuracy of a ConvNet trained on 1 and on 10 images per class only 0.924, 0.920 and 0.915 (seeds 100 and 101)."""
    step_lr: float = 1e-5
    """Learning rate of the step size."""
    momentum: float = 0.5
    """Momentum of the images and of the step size."""
    augment: Literal["dsa", "none"] = "dsa"
    """One random augmentation per step, with separate parameters for each image, or none; the same for the experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("experts", "expert_epochs", "expert_batch", "steps", "ahead"):
            require(getattr(self, field) >= 1, f"condensation.{field}", getattr(self, field), "1 or more")
        require(0 < self.expert_lr < math.inf, "condensation.expert_lr", self.expert_lr, "more than 0, and finite")
        require(0 <= self.step_lr < math.inf, "condensation.step_lr", self.step_lr, "0 or more, and finite")
        require(self.batch >= 0, "condensation.batch", self.batch, "1 or more, or 0 for all images")
        epochs, last = self.expert_epochs, self.expert_epochs - self.ahead
        require(last >= 0, "condensation.ahead", self.ahead, f"1 to {epochs}, the epochs of an expert")
        require(
            0 <= self.max_start <= last,
            "condensation.max_start",
            self.max_start,
            f"0 to {last}, because of the length of the experts",
        )

    def require_memory(self, image_shape: tuple[int, int, int], num_classes: int, free: int) -> None:
        """Raise `InputError` if trajectories and unrolled steps are estimated to need more than `free` bytes."""

        def needed(steps: int, batch: int, width: int) -> int:
            network = convnet_for(image_shape, width=width, depth=self.depth)
            kept = self.experts * (self.expert_epochs + 1)
            return unrolled_bytes(network, image_shape, num_classes, steps=steps, batch=batch, kept=kept)

        images = num_classes * self.condensed_together
        require_memory(needed, free, steps=self.steps, batch=min(self.batch or images, images), width=self.width)

    def expert(
        self,
        number: int,
        real: Samples,
        num_classes: int,
        augment: Augment,
        rng: Streams,
        on_step: OnStep = no_bar,
    ) -> Tensor:
        """Return a trajectory (E + 1, P): the parameters before training and after each epoch."""
        name = f"expert/{number}"
        network = self.network(real.images, num_classes, name, rng)
        trajectory = [parameters_to_vector(network.parameters()).detach()]

        def on_epoch() -> None:
            trajectory.append(parameters_to_vector(network.parameters()).detach())
            on_step(number * self.expert_epochs + len(trajectory) - 1, self._total_steps)

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
        """Train the experts, then optimise the images.

        Raises `InputError` if this needs more memory than is free, and `NonFiniteError` if the training diverges.
        """
        channels, height, width = start.images.shape[1:]
        self.require_memory((channels, height, width), num_classes, free_bytes(start.images.device))

        def augment(images: Tensor, use: str) -> Tensor:
            return self.augmented(images, use, flip_ok=flip_ok, rng=rng)

        every = range(self.experts)
        experts = [self.expert(number, real, num_classes, augment, rng, on_step) for number in every]
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
            parts = [rows[part] for part in self.batches(len(rows), rng["condensation/batches"])]
            batches = ((augment(images[part], "condensation"), start.labels[part]) for part in parts)
            loss = trajectory_loss(unroll(network, before, step_size, batches), before, after)
            images.grad, step_size.grad = torch.autograd.grad(loss, [images, step_size])
            optimizer.step()
            meter.add(trajectory=loss, step_size=step_size)
            on_step(self.experts * self.expert_epochs + iteration + 1, self._total_steps)
        meter.read()  # raises if a loss was not finite, naming the iteration
        return images.detach()

    @property
    def _total_steps(self) -> int:
        """Number of all experts' epochs and of iterations."""
        return self.experts * self.expert_epochs + self.iterations

    def _draw(self, rng: torch.Generator) -> tuple[int, int, int]:
        """Return an expert, the epoch it starts from, and the number of images of each class to use."""
        ends = (self.experts, self.max_start + 1, self.condensed_together)
        expert, begin, last = (int(torch.randint(end, (1,), generator=rng)) for end in ends)
        return expert, begin, last + 1 if self.prefixes else self.condensed_together

    def batches(self, count: int, rng: torch.Generator) -> list[Tensor]:
        """Return `steps` batches of numbers below `count`: parts of permutations, a new one when all are used."""
        size = min(self.batch or count, count)
        if size == count:
            return [torch.arange(count, device=rng.device)] * self.steps
        rounds = -(-self.steps // (count // size))
        orders = (torch.randperm(count, generator=rng, device=rng.device) for _ in range(rounds))
        parts = [part for order in orders for part in order.split(size) if len(part) == size]
        return parts[: self.steps]


def logits_with(network: nn.Module, parameters: Tensor, images: Tensor) -> Tensor:
    """Return logits (B, K) of `images` (B, C, H, W) by `network` with `parameters` (P,); differentiable in both."""
    names, own = zip(*network.named_parameters(), strict=True)
    parts = parameters.split([part.numel() for part in own])
    views = {name: part.view_as(old) for name, part, old in zip(names, parts, own, strict=True)}
    return functional_call(network, views, (images,)).float()


def unroll(network: nn.Module, start: Tensor, step_size: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the parameters (P,) after plain SGD from `start`, one step per batch.

    The result is differentiable in images and step size. A batch consists of images (B, C, H, W) and classes (B,).
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
    """Return the peak memory of `unroll` and its backward pass: 4 (N + 1) (6.5 B A + 2.5 P + 2 B C H W) bytes.

    A, the outputs of all convolutions for one image, represents a block's inner maps, their gradients and what the
    second derivative keeps of both; the backward pass uses the memory of one more step. `kept` more parameter vectors,
    4 P bytes each, are held meanwhile. This is an upper estimate: in 13 settings (N 1 to 40, B 2 to 100, width 16 to
    256, images 8x8 to 32x32, with and without DSA; one run each) the resident memory of a process on a CPU grew by 0.56
    to 0.90 of it. It was not measured on a GPU.
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
    """Raise `InputError` if `needed(**sizes)` bytes are more than `free`.

    For each size, the message states the value that would fit if only that size were reduced.
    """
    if needed(**sizes) <= free:
        return

    def largest(name: str) -> int:
        return bisect(range(1, sizes[name]), free, key=lambda size: needed(**sizes | {name: size}))

    fitting = [f"{name} {largest(name)}" for name in sizes if largest(name)]
    too_little = f"for which reducing {' or '.join(sizes)} alone is not enough"
    advice = f"as with {' or '.join(fitting)}" if fitting else too_little
    what = ", ".join(f"{name} {size}" for name, size in sizes.items())
    accepted = f"at most {byte_size(free)}, which are free, {advice}"
    require(False, f"memory of {what}", byte_size(needed(**sizes)), accepted)
