"""Base class of the inversions that optimise pixels: a batch of noise, Adam steps, pixels clamped to their range.

Letters: B batch, C channels, H W height and width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, unseen
from condkd_ray.data.augment import require_shift, roll_flip
from condkd_ray.methods.inversion.inversion import Host, LossTerms, Round, StepBatch, require_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Pixelwise(Host[None]):
    """Base class of the hosts without a generator (see `Host`); a round optimises the pixels of one batch by Adam.

    A batch starts as Gaussian noise; with `guidance.from_guides`, a part of it starts at condensed images (our choice).
    Pixels are clamped to the valid range at the start and after each step; the images of the step with the lowest loss
    are kept.
    """

    uses_targets = "soft"
    starts_from_images = True
    betas: ClassVar[tuple[float, float]]
    """Adam's betas."""
    steps: int = 100
    """Adam steps per round."""
    batch: int = 128
    """Images per round."""
    lr: float = 0.1
    """Learning rate of Adam, in units of normalised pixels: usually the most by which one step moves a pixel."""
    shift: float = 0.0625
    """Largest shift as a share of the side (2 of 32 pixels), rounded, but at least 1 pixel. The batch is rolled: pixels
    that leave at one edge enter at the opposite one. It is also mirrored, with probability 1/2, if that keeps the
    class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "inversion steps", self.steps, "an integer >= 1")
        require(self.batch >= 2, "inversion batch", self.batch, "an integer >= 2")
        require_shift(self.shift, "inversion shift")

    @abstractmethod
    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return the scalar loss terms by name; each name has a field `<name>_weight`."""

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Return the images (B, C, H, W), all rolled and mirrored alike; the subclass documents the source."""
        return roll_flip(images, rng=rng, share=self.shift, flip=teacher.flip_ok)

    def init(self, teacher: Teacher, rng: Streams) -> None:
        """Return None: there is no state. Raises `InputError` if the loss reads BN and the teacher has none."""
        if self.reads_bn:
            require_bn(teacher)

    @final
    def run(self, state: None, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """Run `steps` Adam steps on one batch and return the images of the step with the lowest loss.

        Raises `NonFiniteError`, with the name of the first loss term that was NaN or infinite.
        """
        rng = call.rng
        darkest, brightest = (
            call.teacher.normalise(torch.full((1, 1, 1, 1), v, device=rng.device)) for v in (0.0, 1.0)
        )
        images = call.latents(len(targets), *call.teacher.image_shape)
        if (start := call.start(targets.labels)) is not None:
            images = torch.cat([start.noisy, images[len(start.noisy) :]])
        images = torch.minimum(torch.maximum(images, darkest), brightest)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([images], self.lr, betas=self.betas, fused=True)

        def move() -> None:
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, darkest), brightest))

        def losses(batch: StepBatch) -> LossTerms:
            return LossTerms(self.terms(batch, teacher=call.teacher, student=call.student))

        for _ in range(self.steps):
            call.step(call.forward(lambda: images, losses, targets), [images], move, keep=True)
        metrics = call.meter.read()
        return unseen(call.best_step.kept[0], targets.labels), metrics
