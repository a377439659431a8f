"""Fast (Fang et al., AAAI 2022, "Up to 100x faster data-free knowledge distillation"): a meta-learned generator.

`peers.md` A.7 and `methods.md` 6.1, 6.2, read in the released code.
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
from condkd_ray.data.augment import require_shift
from condkd_ray.methods.inversion.conditional import Conditional
from condkd_ray.methods.inversion.inversion import LossTerms, Round, StepBatch, require_bn
from condkd_ray.methods.losses.inversion import mix_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import Generator
from condkd_ray.models.network import drawn
from condkd_ray.models.teacher import Teacher


@dataclass
class FastState:
    """The meta generator, its optimiser, the remembered BN statistics (None before the first round), rounds so far."""

    generator: Generator
    optimizer: torch.optim.Optimizer
    bn_memory: Tensor | None = None
    round: int = 0
    _clone: Generator | None = transient(default=None)

    def clone(self) -> Generator:
        """A copy of the generator: in every round the same one, so that graphs find its tensors where they were."""
        if self._clone is None:
            self._clone = copy.deepcopy(self.generator)
        else:
            self._clone.load_state_dict(self.generator.state_dict())
        return self._clone


@dataclass(frozen=True, kw_only=True)
class Fast(Conditional[FastState]):
    r"""Each round a clone of the generator and fresh latents take a few Adam steps; their gradients move the original.

    Minimises bn \sum_l ||BN_l(x) - BN_l|| + oh CE(f_T(x), y) + adv A(f_S(x), f_T(x)) + guide(x, y), where BN_l(x) is
    mixed with that of earlier rounds and A is minus the KL where teacher and student agree. The original then takes
    one Adam step of rate `lr * steps` (see `meta`). The images of lowest loss are kept. Departure: the official code
    lets A in one round early, at the last of the warm-up.
    """

    paper = "Fang et al., AAAI 2022"
    ours = ("batch", "warm_up", "oh_temperature")
    name: Literal["fast"] = "fast"
    uses_targets = "soft"
    steps: int = 10
    """Adam steps a round (k; the paper has 2, 5 and 10)."""
    batch: int = 128
    """Images a round (256 in the official scripts)."""
    latent: int = 256
    width: int = 128
    """Channels of the generator's first stage; the official one has 128."""
    lr: float = 2e-3
    lr_latent: float = 1e-2
    bn_weight: float = 10.0
    oh_weight: float = 0.5
    oh_temperature: float = 1.0
    adv_weight: float = 1.33
    bn_momentum: float = 0.9
    """Share of remembered BN statistics in the matched ones."""
    shift: float = 0.125
    """Largest random shift before the teacher, as a share of the side; with a flip where it keeps the class."""
    meta: Literal["maml", "reptile", "none"] = "maml"
    """How the original learns of its clone: by the summed gradients of the clone's steps (first-order MAML), by the
    way the clone went (Reptile), or there is no clone and the generator goes on from round to round (plain Fast)."""
    reptile_scale: float = 67.0
    """Factor of the clone's way as a gradient of the original. Adam hardly looks at it."""
    warm_up: int = 0  # type: ignore[assignment]
    """Rounds at the beginning that only synthesise, without A (20 in the official scripts)."""
    resets: tuple[int, ...] = ()
    """Rounds, counted from 1 with those of the warm-up, that begin by drawing the first linear and the first BN layer
    of the generator anew; 140 in the official code, if at all, at 20 rounds of warm-up."""

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
        """A generator from stream `init/generator`. Raises `InputError` for a teacher without BN."""
        require_bn(teacher)
        size = (self.latent, self.width, teacher.image_shape)
        generator = drawn(lambda: Generator(*size), "init/generator", teacher.device, rng)
        rate = self.lr * self.steps
        optimizer = torch.optim.Adam(generator.parameters(), rate, betas=(0.5, 0.999), fused=True)
        return FastState(generator, optimizer)

    def run(self, state: FastState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """`steps` inner steps, then one step of the original."""
        state.round += 1
        if state.round in self.resets:
            _reset(state.generator, call.rng, state.round)
        inner = state.generator if self.meta == "none" else state.clone()
        latents = call.latents(len(targets), self.latent).requires_grad_()
        leaves = [*inner.parameters(), latents]
        groups = [{"params": leaves[:-1], "lr": self.lr}, {"params": [latents], "lr": self.lr_latent}]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True)
        state.optimizer.zero_grad()
        opponent = call.student if self.uses_student and state.round > self.warm_up else None
        bn_seen = memory = state.bn_memory

        def make() -> Tensor:
            return call.teacher.normalise(inner(latents))

        def losses(batch: StepBatch) -> LossTerms:
            bn = mix_bn(batch.observation.bn, memory, self.bn_momentum)
            return LossTerms(self.terms(batch, bn=bn, teacher=call.teacher, student=opponent))

        # The latents alone move, so that no meta step sees where the guide has them start.
        call.start_near_guides(make, targets.labels, [latents])
        for _ in range(self.steps):
            forward = call.forward(make, losses, targets)
            gradients = call.step(forward, leaves, optimizer.step, keep=True)
            if self.meta == "maml":
                _add_gradients(state.generator, gradients[:-1])
            bn_seen = forward.batch.observation.bn.detach().clone()
        metrics = call.meter.read()
        if self.meta == "reptile":
            _point_away(state.generator, inner, self.reptile_scale)
        if self.meta != "none":
            state.optimizer.step()
        assert bn_seen is not None
        state.bn_memory = mix_bn(bn_seen, state.bn_memory, self.bn_momentum)
        return unseen(call.lowest.kept[0], targets.labels), metrics


def _add_gradients(generator: nn.Module, gradients: Sequence[Tensor]) -> None:
    """To those the original has gathered this round."""
    for original, gradient in zip(generator.parameters(), gradients, strict=True):
        original.grad = gradient.clone() if original.grad is None else original.grad.add_(gradient)


def _point_away(generator: nn.Module, inner: nn.Module, scale: float) -> None:
    """Reptile's gradient: `scale` times the way from where the clone ended to the original."""
    for original, moved in zip(generator.parameters(), inner.parameters(), strict=True):
        original.grad = scale * (original - moved).detach()


def _reset(generator: Generator, rng: Streams, round: int) -> None:
    """Weights of the first linear and BN layer from N(0, 0.02), biases 0, as the official code; optimisers go on."""
    with rng.forked(f"init/generator/{round}"), torch.no_grad():
        for layer in (generator.linear, generator.start):
            # Drawn on the CPU whatever the device: one seed, one generator.
            layer.weight.copy_(torch.randn(layer.weight.shape) * 0.02, non_blocking=True)
            layer.bias.zero_()
