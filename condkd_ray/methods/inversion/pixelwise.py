"""What hosts that optimise the pixels themselves have in common: a batch of noise, Adam, the valid range.

What a host wants of its images stands in its paper's file: `terms`.

Letters: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Meter, Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import PixelSpace, Samples, unseen
from condkd_ray.data.augment import require_shift, roll_flip
from condkd_ray.methods.interfaces import Guide, Targets, Weigh
from condkd_ray.methods.inversion.inversion import Inversion, Lowest
from condkd_ray.models.teacher import Observation, Teacher


@dataclass(frozen=True, kw_only=True)
class Pixelwise(Inversion[None]):
    """Base of the hosts without a generator; a round is one batch, from Gaussian noise, by `steps` Adam steps.

    Pixels are kept in the valid range at the start and after each step; the images of lowest loss are kept.
    """

    pixel_space: ClassVar[PixelSpace] = "unit"
    hears = "answers"
    betas: ClassVar[tuple[float, float]]
    """Of Adam."""
    steps: int = 100
    batch: int = 128
    """Images a round."""
    lr: float = 0.1
    """In units of normalised pixels; Adam moves a pixel by no more a step."""
    shift: float = 0.0625
    """Largest jitter as a share of the side (2 of 32 pixels, 1 of 8); with a flip where it keeps the class."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require(self.lr > 0, "inversion lr", self.lr, "> 0")
        require_shift(self.shift, "inversion shift")

    @abstractmethod
    def terms(
        self,
        images: Tensor,
        augmented: Tensor,
        seen: Observation,
        targets: Targets,
        weight: Tensor,
        *,
        teacher: Teacher,
        student: nn.Module,
    ) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field.

        `images` (B, C, H, W), their `augmented` form, what the teacher has `seen` of that, and `weight` (B,), by which
        terms that are a mean over images weigh each.
        """

    @property
    def images_per_round(self) -> int:
        """One batch."""
        return self.batch

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Jitter and flip of the whole batch at once; see the host for its source."""
        return roll_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok)

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Nothing is carried from round to round."""

    @final
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
        optimizer = torch.optim.Adam([images], self.lr, betas=self.betas)
        meter, lowest = Meter("inversion"), Lowest()
        for _ in range(self.steps):
            # Under a name of its own: the leaf Adam moves must stay the one the guide is shown.
            augmented = self.augment(images, teacher=teacher, rng=rng["augment/inversion"])
            seen = teacher.observe(augmented, guide.layers, bn=self.reads_bn)
            weight = weigh(seen, targets.labels)
            terms = self.terms(images, augmented, seen, targets, weight, teacher=teacher, student=student)
            pull = guide.penalty(images, seen, targets.labels)
            loss = sum((getattr(self, f"{name}_weight") * term for name, term in terms.items()), pull)
            (images.grad,) = torch.autograd.grad(loss, [images])
            lowest.offer(loss, images)
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))
            guide.update(images.detach(), seen.detach(), targets.labels)
            meter.add(**terms, guide=pull, loss=loss)
        metrics = meter.read()
        (best,) = lowest.kept
        return unseen(best, targets.labels), metrics
