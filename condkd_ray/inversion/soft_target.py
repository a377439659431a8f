"""Soft-targeted transfer sets (Z. Wang, AAAI 2021, arXiv 2104.04868): optimise pixels until the teacher answers so.

"Data-free knowledge distillation with soft targeted transfer set synthesis"; what the teacher is to answer is
`targets/soft.py`. Loss, settings and traps: `methods.md` 5.2, 5.4, 5.6 (the paper's formulas by way of its discussions
and of a re-implementation; it has no released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.augment import shift_flip
from condkd_ray.guide import Guide, Targets, Weigh
from condkd_ray.inversion.inversion import Inversion, Lowest
from condkd_ray.losses.priors import class_prior, negative_activation
from condkd_ray.method import Meter, Metrics, require
from condkd_ray.samples import PixelSpace, Samples
from condkd_ray.streams import Streams
from condkd_ray.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class SoftTarget(Inversion[None]):
    r"""Pixel-space inversion towards answers, without batch normalisation: it works for LeNet.

    Minimises over images x, for targets y: oh H(y, softmax(f_T(x) / tau)) - act mean|features| + guide(x, y). The
    targets of a round stay the same in all its steps; tau is theirs, 1 for labels. As DeepInversion here, our choice:
    Gaussian noise to begin with, pixels kept in the valid range, jitter and flip drawn per image, the images of
    lowest loss kept.
    """

    paper: ClassVar[str] = "Z. Wang, AAAI 2021"
    ours: ClassVar[tuple[str, ...]] = ("steps", "batch", "act_weight", "shift")
    name: Literal["soft_target"] = "soft_target"
    pixel_space: ClassVar[PixelSpace] = "unit"
    hears = "answers"
    steps: int = 100
    """Adam steps a round (1000 at rate 0.1 or 1500 at rate 1e-3 in a re-implementation, 1500 at 1e-3 in ZSKD)."""
    batch: int = 128
    """Images a round (256 or 512 in the re-implementation)."""
    lr: float = 0.1
    """In units of normalised pixels; Adam moves a pixel by no more a step."""
    oh_weight: float = 1.0
    act_weight: float = 0.01
    """The paper: 0.05 for LeNet-5, 0.1 for AlexNet, of a scale not known. Cross-entropy's gradient falls with the
    square of tau: at 20 those outweigh it, and all images excite a few classes. On digits, 20 steps, 12 rounds, one
    run each, validation accuracy at 0, 0.01 and 0.1: 0.38, 0.61, 0.05 (lenet5); 0.78, 0.85, 0.73 (resnet-8-16)."""
    shift: float = 0.0625
    """Largest jitter as a share of the side; with a flip where it keeps the class."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(self.lr > 0, "inversion lr", self.lr, "> 0")

    @property
    def images_per_round(self) -> int:
        """One batch."""
        return self.batch

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Jitter and flip."""
        return shift_flip(images, rng=rng, shift=round(self.shift * images.shape[-1]), flip=teacher.flip_ok)

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing is carried from round to round, and any teacher will do."""

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
        darkest, brightest = (teacher.normalise(torch.full((1, 1, 1, 1), v, device=rng.device)) for v in (0.0, 1.0))
        images = torch.randn((len(targets), *teacher.image_shape), generator=rng["latents"], device=rng.device)
        images = torch.minimum(torch.maximum(images, darkest), brightest)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([images], self.lr, betas=(0.5, 0.99))
        meter, lowest = Meter("inversion"), Lowest()
        for _ in range(self.steps):
            # Under a name of its own: the leaf Adam moves must stay the one the teacher is shown.
            augmented = self.augment(images, teacher=teacher, rng=rng["augment/inversion"])
            seen = teacher.observe(augmented, guide.layers)
            oh = (weigh(seen, targets.labels) * class_prior(seen.logits, targets.answers, targets.temperature)).mean()
            act = negative_activation(seen.features)
            pull = guide.penalty(images, seen, targets.labels)
            loss = self.oh_weight * oh + self.act_weight * act + pull
            (images.grad,) = torch.autograd.grad(loss, [images])
            lowest.offer(loss, images)
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))
            guide.update(images.detach(), seen.detach(), targets.labels)
            meter.add(oh=oh, act=act, guide=pull, loss=loss)
        metrics = meter.read()
        (best,) = lowest.kept
        with torch.no_grad():
            return Samples(best, targets.labels, teacher.logits(best)), metrics
