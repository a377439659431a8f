"""DAFL (Chen et al., ICCV 2019, "Data-free learning of student networks"): an unconditional generator.

Formulas and weights: `peers.md` A.1 (read in the authors' released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, fresh_images
from condkd_ray.losses.priors import class_prior, negative_activation, negative_entropy
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.networks.generator import Generator
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class DaflState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Dafl(Inversion[DaflState]):
    r"""A generator whose images the teacher finds certain, equally spread over the classes, and exciting.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - a mean|features| + guide(x, argmax f_T(x)),
    p the batch's mean class distribution. Departure: the official code steps generator and student in one backward
    pass; here a round is `steps` generator steps and then `images_per_round` fresh images for the student.
    """

    paper: ClassVar[str] = "Chen et al., ICCV 2019"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch", "images_per_round")
    name: Literal["dafl"] = "dafl"
    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    steps: int = 20
    """Adam steps of the generator a round."""
    batch: int = 128
    """Images a generator step (512 to 1024 in the official code)."""
    latent: int = 1000
    width: int = 128
    lr: float = 0.02
    oh_weight: float = 0.05
    ie_weight: float = 5.0
    act_weight: float = 0.01
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each the student takes is the official ratio."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(self.images_per_round >= 2, "images_per_round", self.images_per_round, "an integer >= 2")

    def init(self, teacher: Teacher, rng: Streams) -> DaflState:
        """A generator from stream `init/generator`; BN eps 0.8 and a final BN without affine, as the official code."""
        with rng.forked("init/generator"):
            generator = Generator(self.latent, self.width, teacher.image_shape, head="tanh_bn", eps=0.8)
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return DaflState(generator, torch.optim.Adam(generator.parameters(), self.lr))

    def synthesize(
        self,
        state: DaflState,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """`steps` generator steps, then fresh images labelled by the teacher's argmax; `targets` are not used."""
        meter = Meter("inversion")
        weights = list(state.generator.parameters())
        for _ in range(self.steps):
            images = state.generator(self._latents(self.batch, rng))
            seen = teacher.observe(images, guide.layers)
            labels = seen.logits.argmax(1)
            oh = (weigh(seen, labels) * class_prior(seen.logits, labels)).mean()
            ie = negative_entropy(seen.logits)
            act = negative_activation(seen.features)
            pull = guide.penalty(images, seen, labels)
            loss = self.oh_weight * oh + self.ie_weight * ie + self.act_weight * act + pull
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), labels)
            meter.add(oh=oh, ie=ie, act=act, guide=pull, loss=loss)
        metrics = meter.read()
        made = fresh_images(
            lambda count: state.generator(self._latents(count, rng)), self.images_per_round, self.batch, teacher
        )
        return made, metrics

    def _latents(self, count: int, rng: Streams) -> Tensor:
        return torch.randn(count, self.latent, generator=rng["latents"], device=rng.device)
