"""PRE-DFKD's generator (Binici et al., AAAI 2022, "Robust and resource-efficient data-free KD by generative replay").

Networks, formulas and weights: `methods.md` 2.2 to 2.4 and `peers.md` A.9 (read in the authors' released code). What
the student rehearses between rounds is a memory's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, fresh_images
from condkd_ray.losses.adversarial import JsReduction, jensen_shannon
from condkd_ray.losses.priors import class_prior, negative_activation, negative_entropy
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.networks.generator import Generator
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass
class PreDfkdState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class PreDfkd(Inversion[PreDfkdState]):
    r"""A generator whose images the teacher finds certain, evenly spread and exciting, and the student surprising.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - act mean|features|
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, argmax f_T(x)), p the batch's mean class distribution.
    Departures: the released code alternates one generator step and ten of the student; here a round is `steps`
    generator steps and then `images_per_round` fresh images. It leaves the student in training mode while the
    generator learns; here it is asked in eval mode, and its BN statistics come from what it is taught alone.
    """

    paper: ClassVar[str] = "Binici et al., AAAI 2022"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch", "images_per_round")
    name: Literal["pre_dfkd"] = "pre_dfkd"
    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    steps: int = 20
    """Adam steps of the generator a round."""
    batch: int = 128
    """Images a generator step (1024 in the released code)."""
    latent: int = 1000
    width: int = 128
    lr: float = 0.02
    """As released, for batches of 1024. A tenth of it served batches of 128 better on digits."""
    oh_weight: float = 1.0
    ie_weight: float = 5.0
    act_weight: float = 0.1
    adv_weight: float = 1.0
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "mean"
    """`mean` is as released: over images and classes. Where both confidently disagree on every image JS is then only
    0.08 to 0.15 for 10 classes, 0.002 to 0.008 for 100 and about 0.0004 for 200, so that the term hardly acts.
    `batchmean` sums over the classes."""
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def init(self, teacher: Teacher, rng: Streams) -> PreDfkdState:
        """A generator from stream `init/generator`: spectral norm, weights U(-0.08, 0.08), BN eps 0.8."""
        with rng.forked("init/generator"):
            generator = Generator(
                *(self.latent, self.width, teacher.image_shape),
                head="tanh_bn",
                eps=0.8,
                spectral=True,
                init="uniform",
            )
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return PreDfkdState(generator, torch.optim.Adam(generator.parameters(), self.lr))

    def synthesize(
        self,
        state: PreDfkdState,
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
            weight = weigh(seen, labels)
            js = jensen_shannon(student(images), seen.logits, temperature=self.temperature, reduction=self.js_reduction)
            oh = (weight * class_prior(seen.logits, labels)).mean()
            ie = negative_entropy(seen.logits)
            act = negative_activation(seen.features)
            adv = 1 - (weight * js).mean().clamp(0, 1)
            pull = guide.penalty(images, seen, labels)
            prior = self.oh_weight * oh + self.ie_weight * ie + self.act_weight * act
            loss = prior + self.adv_weight * adv + pull
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), labels)
            meter.add(oh=oh, ie=ie, act=act, adv=adv, guide=pull, loss=loss)
        metrics = meter.read()
        made = fresh_images(
            lambda count: state.generator(self._latents(count, rng)), self.images_per_round, self.batch, teacher
        )
        return made, metrics

    def _latents(self, count: int, rng: Streams) -> Tensor:
        return torch.randn(count, self.latent, generator=rng["latents"], device=rng.device)
