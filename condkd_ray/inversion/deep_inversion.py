"""DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795): optimise pixels until the teacher's BN statistics agree.

Weights and settings: `peers.md` A.0, A.5 (read in the authors' released code and its DataFree port).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.augment import shift_flip
from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, Lowest, require_bn
from condkd_ray.losses.adversarial import JsReduction, jensen_shannon
from condkd_ray.losses.priors import bn_distance, class_prior, total_variation
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Inversion[None]):
    r"""Pixel-space inversion; with an `adv_weight` it is Adaptive DeepInversion (ADI), which competes with the student.

    Minimises over images x, for labels y: oh CE(f_T(x), y) + bn \sum_l ||BN_l(x) - BN_l|| + tv TV(x) + l2 ||x||
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, y). Pixels are kept in the valid range at the start and
    after each step (the DataFree port: after each step), and the images of lowest loss are really kept (the released
    codes keep the last ones). Departure: jitter and flip are drawn per image, zeros coming in, where the official code
    rolls the whole batch.
    """

    paper: ClassVar[str] = "Yin et al., CVPR 2020"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch")
    name: Literal["deep_inversion"] = "deep_inversion"
    pixel_space: ClassVar[PixelSpace] = "unit"
    hears = "answers"
    steps: int = 100
    """Adam steps a round (2000 in the official code)."""
    batch: int = 128
    lr: float = 0.1
    bn_weight: float = 10.0
    oh_weight: float = 1.0
    tv_weight: float = 1e-3
    l2_weight: float = 0.0
    adv_weight: float = 0.0
    """Of ADI's competition; 0 as released for CIFAR, where the student is then not asked at all. On ImageNet 0.2."""
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "batchmean"
    """Over the classes a sum, as released, or a mean (`mean`)."""
    first_bn_factor: float = 1.0
    """How often the first BN layer counts in `bn`: 1 as released for CIFAR, 10 for ImageNet."""
    shift: float = 0.0625
    """Largest jitter as a share of the side (2 of 32 pixels)."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    @property
    def images_per_round(self) -> int:
        """One batch."""
        return self.batch

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Jitter and flip."""
        return shift_flip(images, rng=rng, shift=round(self.shift * images.shape[-1]), flip=teacher.flip_ok)

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing is carried from round to round. Raises `InputError` for a teacher without BN."""
        require_bn(teacher)

    def synthesize(
        self,
        state: None,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """`steps` Adam steps on a batch that starts as Gaussian noise."""
        shape = (len(targets), *teacher.image_shape)
        images = torch.randn(shape, generator=rng["latents"], device=rng.device)
        darkest, brightest = (teacher.normalise(torch.full_like(images[:1, :, :1, :1], v)) for v in (0.0, 1.0))
        images = torch.minimum(torch.maximum(images, darkest), brightest)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([images], self.lr, betas=(0.5, 0.9))
        meter = Meter("inversion")
        running = teacher.running_bn
        lowest = Lowest()
        for _ in range(self.steps):
            augmented = self.augment(images, teacher=teacher, rng=rng["augment/inversion"])
            seen = teacher.observe(augmented, guide.layers)
            weight = weigh(seen, targets.labels)
            bn = bn_distance(seen.bn, running, self.first_bn_factor)
            oh = (weight * class_prior(seen.logits, targets.answers, targets.temperature)).mean()
            adv = self._competition(augmented, seen.logits, student, weight)
            tv = total_variation(images)
            l2 = torch.linalg.vector_norm(images)
            pull = guide.penalty(images, seen, targets.labels)
            prior = self.bn_weight * bn + self.oh_weight * oh + self.tv_weight * tv + self.l2_weight * l2
            loss = prior + self.adv_weight * adv + pull
            (images.grad,) = torch.autograd.grad(loss, [images])
            lowest.offer(loss, images)
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))
            guide.update(images.detach(), seen.detach(), targets.labels)
            meter.add(bn=bn, oh=oh, tv=tv, l2=l2, adv=adv, guide=pull, loss=loss)
        metrics = meter.read()
        (best,) = lowest.kept
        with torch.no_grad():
            return Samples(best, targets.labels, teacher.logits(best)), metrics

    def _competition(self, images: Tensor, answers: Tensor, student: nn.Module, weight: Tensor) -> Tensor:
        """ADI's term, 1 where student and teacher answer alike; 0 where it has no weight."""
        if self.adv_weight == 0:
            return answers.new_zeros(())
        js = jensen_shannon(student(images), answers, temperature=self.temperature, reduction=self.js_reduction)
        return 1 - (weight * js).mean().clamp(0, 1)
