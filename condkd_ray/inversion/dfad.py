"""DFAD (Fang et al., arXiv 1912.11006, "Data-free adversarial distillation"): the largest difference of the logits.

Formula, network and rates: `peers.md` A.3 (read in the authors' released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, fresh_images
from condkd_ray.losses.kd import logit_l1
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.networks.generator import Generator
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class DfadState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Dfad(Inversion[DfadState]):
    """A generator that looks for images on which the student's logits are far from the teacher's, and nothing else.

    Minimises -adv mean|f_S(x) - f_T(x)| + guide(x, argmax f_T(x)); its student is to be taught by the same distance,
    loss `l1`. Departures: the released code alternates five student steps, each on images of its own, and one of the
    generator; here a round is `steps` generator steps and then `images_per_round` fresh images. Its rates may be
    divided by 10 twice, and it asks the student in training mode; here the rate stays, and the student's BN
    statistics come from what it is taught alone.
    """

    paper: ClassVar[str] = "Fang et al., arXiv 1912.11006"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch", "images_per_round")
    name: Literal["dfad"] = "dfad"
    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step (256 in the released code)."""
    latent: int = 256
    width: int = 128
    lr: float = 1e-3
    adv_weight: float = 1.0
    """Of the only term, against a guide's."""
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each the student takes is the official ratio."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    def init(self, teacher: Teacher, rng: Streams) -> DfadState:
        """A generator from stream `init/generator` that ends in Tanh and a BN without affine."""
        with rng.forked("init/generator"):
            generator = Generator(self.latent, self.width, teacher.image_shape, head="tanh_bn")
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return DfadState(generator, torch.optim.Adam(generator.parameters(), self.lr))

    def synthesize(
        self,
        state: DfadState,
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
            adv = -(weigh(seen, labels) * logit_l1(student(images), seen.logits)).mean()
            pull = guide.penalty(images, seen, labels)
            loss = self.adv_weight * adv + pull
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), labels)
            meter.add(adv=adv, guide=pull, loss=loss)
        metrics = meter.read()
        made = fresh_images(
            lambda count: state.generator(self._latents(count, rng)), self.images_per_round, self.batch, teacher
        )
        return made, metrics

    def _latents(self, count: int, rng: Streams) -> Tensor:
        return torch.randn(count, self.latent, generator=rng["latents"], device=rng.device)
