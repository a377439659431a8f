"""DFQ (Choi et al., CVPRW 2020, "Data-free network quantization with adversarial knowledge distillation").

Formulas, weights, network and rates: `peers.md` A.4 (read in a public re-run of it as a distillation baseline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, fresh_images, require_bn
from condkd_ray.losses.kd import divergence
from condkd_ray.losses.priors import bn_distance, entropy, negative_entropy
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.networks.generator import Generator
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class DfqState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Dfq(Inversion[DfqState]):
    r"""A generator whose images surprise the student, but look to the teacher's statistics and answers like its data.

    Minimises -adv KL(f_T(x) || f_S(x)) + bn \sum_l ||BN_l(x) - BN_l|| + ice mean_i H(p_i) - bce H(mean_i p_i)
    + guide(x, argmax f_T(x)), H the entropy to base 10 of p_i = softmax f_T(x_i): each image certain (ICE), the batch
    spread over the classes (BCE). The re-run has the signs of both entropies the other way round, against that
    purpose; the DataFree port has them as here. Departures: the re-run alternates five student steps and one of the
    generator, cools both rates along cosines and asks the student in training mode; here a round is `steps` generator
    steps and then `images_per_round` fresh images, the rate stays, and the student is asked in eval mode.
    """

    paper: ClassVar[str] = "Choi et al., CVPRW 2020"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch", "images_per_round")
    name: Literal["dfq"] = "dfq"
    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as in the re-run."""
    batch: int = 128
    """Images a generator step (256 in the re-run)."""
    latent: int = 256
    width: int = 128
    lr: float = 1e-3
    adv_weight: float = 1.0
    bn_weight: float = 0.1
    first_bn_factor: float = 5.0
    """How often the first BN layer counts in `bn`."""
    ice_weight: float = 0.1
    bce_weight: float = 0.1
    """The re-run gives bn, ice and bce one weight; the DataFree port has 1, 1 and 20."""
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each the student takes is the re-run's ratio."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    def init(self, teacher: Teacher, rng: Streams) -> DfqState:
        """A generator from stream `init/generator`, DAFL's. Raises `InputError` for a teacher without BN."""
        require_bn(teacher)
        with rng.forked("init/generator"):
            generator = Generator(self.latent, self.width, teacher.image_shape, head="tanh_bn", eps=0.8)
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return DfqState(generator, torch.optim.Adam(generator.parameters(), self.lr, betas=(0.5, 0.999)))

    def synthesize(
        self,
        state: DfqState,
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
        running = teacher.running_bn
        for _ in range(self.steps):
            images = state.generator(self._latents(self.batch, rng))
            seen = teacher.observe(images, guide.layers)
            labels = seen.logits.argmax(1)
            weight = weigh(seen, labels)
            adv = -(weight * divergence(student(images), seen.logits)).mean()
            bn = bn_distance(seen.bn, running, self.first_bn_factor)
            ice = (weight * entropy(seen.logits)).mean()
            bce = negative_entropy(seen.logits)
            pull = guide.penalty(images, seen, labels)
            prior = self.bn_weight * bn + self.ice_weight * ice + self.bce_weight * bce
            loss = self.adv_weight * adv + prior + pull
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), labels)
            meter.add(adv=adv, bn=bn, ice=ice, bce=bce, guide=pull, loss=loss)
        metrics = meter.read()
        made = fresh_images(
            lambda count: state.generator(self._latents(count, rng)), self.images_per_round, self.batch, teacher
        )
        return made, metrics

    def _latents(self, count: int, rng: Streams) -> Tensor:
        return torch.randn(count, self.latent, generator=rng["latents"], device=rng.device)
