"""What unconditional hosts have in common: a generator of noise alone, some steps of it, then fresh images.

What a host wants of its images stands in its paper's file: `build` and `terms`.

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
from condkd_ray.core.samples import PixelSpace, Samples
from condkd_ray.methods.interfaces import Guide, Targets, Weigh
from condkd_ray.methods.inversion.inversion import Inversion, fresh_images
from condkd_ray.models.generator import Generator
from condkd_ray.models.teacher import Observation, Teacher


@dataclass
class GeneratorState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Unconditional(Inversion[GeneratorState]):
    """Base of the hosts that label by the teacher's argmax. A round is `steps` steps, then `images_per_round` images.

    The released codes alternate steps of the generator and of the student; that the student's come after all of the
    generator's, on images made once, is our choice. The student is asked in eval mode.
    """

    pixel_space: ClassVar[PixelSpace] = "model"
    hears = "nothing"
    fresh = True
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of Adam."""
    steps: int = 20
    """Adam steps of the generator a round."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 1000
    width: int = 128
    lr: float = 0.02
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each that the student takes by default."""

    def __post_init__(self) -> None:
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    @property
    def asks_student(self) -> bool:
        """Where it has such a term, whatever its weight: it is logged."""
        return hasattr(self, "adv_weight")

    @abstractmethod
    def build(self, teacher: Teacher) -> Generator:
        """The untrained generator; draws from the global generator of random numbers."""

    @abstractmethod
    def terms(
        self, images: Tensor, seen: Observation, labels: Tensor, weight: Tensor, *, teacher: Teacher, student: nn.Module
    ) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field.

        `images` (B, C, H, W), what the teacher has `seen` of them, its argmax `labels` (B,), and `weight` (B,), by
        which terms that are a mean over images weigh each.
        """

    def limit(self, weights: list[nn.Parameter]) -> None:
        """Do to the gradients of `weights` what is done before a step: nothing."""

    @final
    def init(self, teacher: Teacher, rng: Streams) -> GeneratorState:
        """A generator from stream `init/generator`. Raises `InputError` for a teacher it cannot serve."""
        self.check_teacher(teacher)
        with rng.forked("init/generator"):
            generator = self.build(teacher)
        generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return GeneratorState(generator, torch.optim.Adam(generator.parameters(), self.lr, betas=self.betas))

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `InputError` for a teacher that lacks what the terms need."""

    @final
    def synthesize(
        self,
        state: GeneratorState,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """`steps` generator steps, then fresh images, not yet labelled; `targets` are not used."""
        meter = Meter("inversion")
        weights = list(state.generator.parameters())
        for _ in range(self.steps):
            images = state.generator(self._latents(self.batch, rng))
            seen = teacher.observe(images, guide.layers, bn=self.reads_bn)
            labels = seen.logits.argmax(1)
            terms = self.terms(images, seen, labels, weigh(seen, labels), teacher=teacher, student=student)
            pull = guide.penalty(images, seen, labels)
            loss = sum((getattr(self, f"{name}_weight") * term for name, term in terms.items()), pull)
            for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                parameter.grad = gradient
            self.limit(weights)
            state.optimizer.step()
            guide.update(images.detach(), seen.detach(), labels)
            meter.add(**terms, guide=pull, loss=loss)
        metrics = meter.read()
        made = fresh_images(lambda count: state.generator(self._latents(count, rng)), self.images_per_round, self.batch)
        return made, metrics

    def _latents(self, count: int, rng: Streams) -> Tensor:
        return torch.randn(count, self.latent, generator=rng["latents"], device=rng.device)
