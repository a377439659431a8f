"""Fast (Fang et al., AAAI 2022, "Up to 100x faster data-free knowledge distillation"): a meta-learned generator.

Losses, optimisers and settings follow the released code of Fast.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.core.checkpoint import transient
from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.core.task import BOTH
from condkd_ray.data.augment import require_shift
from condkd_ray.methods.inversion.conditional import (
    Conditional,
    TargetGenerator,
    generator_inputs,
    target_generator,
)
from condkd_ray.methods.inversion.inversion import LossTerms, Round, StepBatch, require_bn
from condkd_ray.methods.losses.inversion import mix_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import LayoutGenerator
from condkd_ray.models.network import seeded_module
from condkd_ray.models.teacher import Teacher


@dataclass
class FastState:
    """The meta generator, its optimiser, the running BN statistics (None before the first round), and rounds so far."""

    generator: TargetGenerator
    optimizer: torch.optim.Optimizer
    bn_memory: Tensor | None = None
    round: int = 0
    _clone: TargetGenerator | None = transient(default=None)

    def clone(self) -> TargetGenerator:
        """Return a copy of the generator.

        It is the same module in every round, because captured graphs read its tensors at fixed addresses.
        """
        if self._clone is None:
            self._clone = copy.deepcopy(self.generator)
        else:
            self._clone.load_state_dict(self.generator.state_dict())
        return self._clone


@dataclass(frozen=True, kw_only=True)
class Fast(Conditional[FastState]):
    r"""A clone of the generator takes a few Adam steps per round, with new latents; the gradients update the original.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + guide(x, y). BN_l(x) is averaged
    with the statistics of earlier rounds; A is minus KL(f_T(x) || f_S(x)) if teacher and student predict the same
    class, else 0. The original generator then takes one Adam step at rate `lr * steps` (see `meta`). The images of the
    step with the lowest loss are kept. In segmentation y is the target layout, which the generator gets too (our
    choice). Departure: Fast's code already uses A in the last round of the warm-up.
    """

    paper = "Fang et al., AAAI 2022"
    ours = ("batch", "warm_up", "oh_temperature")
    tasks = BOTH
    name: Literal["fast"] = "fast"
    uses_targets = "soft"
    steps: int = 10
    """Adam steps per round (k in the paper: 2, 5 or 10)."""
    batch: int = 128
    """Images per round (256 in Fast's scripts)."""
    latent: int = 256
    """Length of the latent vectors."""
    width: int = 128
    """Channels of the generator's first stage (128 in Fast's code)."""
    lr: float = 2e-3
    """Learning rate of Adam for the clone, or for the generator if there is no clone; `meta` steps have `steps` times
    this rate."""
    lr_latent: float = 1e-2
    """Learning rate of Adam for the latents."""
    bn_weight: float = 10.0
    """Weight of the distance between the BN statistics of the images and the teacher's."""
    oh_weight: float = 0.5
    """Weight of the class prior, the cross-entropy between the teacher's predictions and the targets."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    adv_weight: float = 1.33
    """Weight of the adversarial term A."""
    bn_momentum: float = 0.9
    """Weight of the running BN statistics in the matched ones."""
    shift: float = 0.125
    """Largest random shift before the teacher, as a share of the side. Images are also flipped if that keeps the
    class."""
    meta: Literal["maml", "reptile", "none"] = "maml"
    """Update of the original generator: by the summed gradients of the clone's steps (first-order MAML), or by the
    difference between the clone's last weights and the original's (Reptile). With `none` there is no clone, and the
    generator is trained from round to round (plain Fast)."""
    reptile_scale: float = 67.0
    """Factor that turns the clone's change of weights into a gradient of the original. Adam is almost invariant to
    it."""
    warm_up: int = 0  # type: ignore[assignment]
    """First rounds that only synthesise, without A (20 in Fast's scripts)."""
    resets: tuple[int, ...] = ()
    """Rounds at whose start the generator's first linear layer and first BN layer are drawn again. Rounds are counted
    from 1, warm-up included. Fast's code optionally resets at 140, with 20 rounds of warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(0 <= self.bn_momentum < 1, "bn_momentum", self.bn_momentum, "0 <= momentum < 1")
        require(self.reptile_scale > 0, "reptile_scale", self.reptile_scale, "> 0")
        require(self.warm_up >= 0, "inversion warm_up", self.warm_up, "an integer >= 0")
        require(all(number >= 1 for number in self.resets), "inversion resets", self.resets, "integers >= 1")
        require_shift(self.shift, "inversion shift")

    def init(self, teacher: Teacher, rng: Streams) -> FastState:
        """Return a generator from stream `init/generator`. Raises `InputError` for a teacher without BN."""
        require_bn(teacher)
        size = (self.latent, self.width, teacher)
        generator = seeded_module(lambda: target_generator(*size), "init/generator", teacher.device, rng)
        rate = self.lr * self.steps
        optimizer = torch.optim.Adam(generator.parameters(), rate, betas=(0.5, 0.999), fused=True)
        return FastState(generator, optimizer)

    def run(self, state: FastState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run `steps` inner steps, then one step of the original generator."""
        state.round += 1
        if state.round in self.resets:
            _reset(state.generator, call.rng, state.round)
        inner = state.generator if self.meta == "none" else state.clone()
        latents = call.latents(len(targets), self.latent).requires_grad_()
        leaves = [*inner.parameters(), latents]
        groups = [{"params": leaves[:-1], "lr": self.lr}, {"params": [latents], "lr": self.lr_latent}]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True)
        state.optimizer.zero_grad()
        adv_student = call.student if self.uses_student and state.round > self.warm_up else None
        last_bn = memory = state.bn_memory

        def make() -> Tensor:
            return call.teacher.normalise(inner(*generator_inputs(latents, targets)))

        def losses(batch: StepBatch) -> LossTerms:
            bn = mix_bn(batch.observation.bn, memory, self.bn_momentum)
            return LossTerms(self.terms(batch, bn=bn, teacher=call.teacher, student=adv_student))

        # Only the latents move, so that the start at condensed images does not enter the meta step.
        call.start_near_guides(make, targets.labels, [latents])
        for _ in range(self.steps):
            forward = call.forward(make, losses, targets)
            gradients = call.step(forward, leaves, optimizer.step, keep=True)
            if self.meta == "maml":
                add_gradients(state.generator, gradients[:-1])
            last_bn = forward.batch.observation.bn.detach().clone()
        metrics = call.meter.read()
        if self.meta == "reptile":
            set_reptile_gradients(state.generator, inner, self.reptile_scale)
        if self.meta != "none":
            state.optimizer.step()
        assert last_bn is not None
        state.bn_memory = mix_bn(last_bn, state.bn_memory, self.bn_momentum)
        return unseen(call.best_step.kept[0], targets.labels), metrics


def add_gradients(generator: nn.Module, gradients: Sequence[Tensor]) -> None:
    """Add these gradients to those that the original generator has accumulated this round."""
    for original, gradient in zip(generator.parameters(), gradients, strict=True):
        original.grad = gradient.clone() if original.grad is None else original.grad.add_(gradient)


def set_reptile_gradients(generator: nn.Module, inner: nn.Module, scale: float) -> None:
    """Set Reptile's gradient: `scale` times (original weights - the clone's last weights)."""
    for original, moved in zip(generator.parameters(), inner.parameters(), strict=True):
        original.grad = scale * (original - moved).detach()


def _reset(generator: TargetGenerator, rng: Streams, round: int) -> None:
    """Draw the first linear and BN layer again: weights N(0, 0.02), biases 0, as in Fast's code.

    The optimisers keep their state.
    """
    body = generator.body if isinstance(generator, LayoutGenerator) else generator
    with rng.forked(f"init/generator/{round}"), torch.no_grad():
        for layer in (body.linear, body.start):
            # Drawn on the CPU whatever the device: one seed, one generator.
            layer.weight.copy_(torch.randn(layer.weight.shape) * 0.02, non_blocking=True)
            layer.bias.zero_()
