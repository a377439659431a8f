"""ZSKT (Micaelli and Storkey, NeurIPS 2019, "Zero-shot knowledge transfer via adversarial belief matching").

Formula, network and rates: `peers.md` A.2 (read in the authors' released code). That the student also matches the
teacher's attention is a matter of the distiller's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, fresh_images
from condkd_ray.losses.kd import divergence
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.networks.generator import Generator
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class ZsktState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Zskt(Inversion[ZsktState]):
    """A generator that looks for images on which the student does not believe what the teacher does, and nothing else.

    Minimises -adv KL(f_T(x) || f_S(x)) + guide(x, argmax f_T(x)), the norm of its gradient clipped. Departures: the
    released code alternates one generator step and ten of the student on the same latents; here a round is `steps`
    generator steps and then `images_per_round` fresh images. It divides the KL by the number of classes, which under
    Adam matters for the clipping alone, lets the rate fall along a cosine, and asks the student in training mode;
    here the rate stays, and the student's BN statistics come from what it is taught alone.
    """

    paper: ClassVar[str] = "Micaelli and Storkey, NeurIPS 2019"
    ours: ClassVar[tuple[str, ...]] = ("steps", "images_per_round")
    name: Literal["zskt"] = "zskt"
    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    steps: int = 2
    """Adam steps of the generator a round: one to ten of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 100
    width: int = 128
    lr: float = 1e-3
    clip: float = 5.0
    """Largest norm of the gradient over all weights of the generator; longer ones are shortened to it."""
    adv_weight: float = 1.0
    """Of the only term, against a guide's."""
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each the student takes."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")
        require(self.clip > 0, "inversion clip", self.clip, "> 0")

    def init(self, teacher: Teacher, rng: Streams) -> ZsktState:
        """A generator from stream `init/generator` that ends in a BN with affine: its images know no bounds."""
        with rng.forked("init/generator"):
            generator = Generator(self.latent, self.width, teacher.image_shape, head="bn")
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ZsktState(generator, torch.optim.Adam(generator.parameters(), self.lr))

    def synthesize(
        self,
        state: ZsktState,
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
            adv = -(weigh(seen, labels) * divergence(student(images), seen.logits)).mean()
            pull = guide.penalty(images, seen, labels)
            loss = self.adv_weight * adv + pull
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(weights, self.clip)
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
