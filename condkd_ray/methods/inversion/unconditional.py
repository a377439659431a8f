"""Base of the unconditional hosts: a generator of noise alone, some steps of it, then fresh images.

As an option it is told a label too. Letters: B batch, C channels, H W height and width, Z latent size.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, Samples, unseen
from condkd_ray.methods.inversion.inversion import Host, LossTerms, Round, StepBatch, TargetUse, require_bn
from condkd_ray.methods.targets import Targets, balanced_labels
from condkd_ray.models.generator import Generator, LabelledGenerator
from condkd_ray.models.network import drawn
from condkd_ray.models.teacher import Teacher


@dataclass
class GeneratorState:
    """The generator and its optimiser."""

    generator: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class Unconditional(Host[GeneratorState]):
    """Base of the hosts that label by the teacher's argmax. A round is `steps` steps, then `images_per_round` images.

    The released codes alternate steps of the generator and of the student; that the student's come after all of the
    generator's, on images made once, is our choice. The student is asked in eval mode.
    """

    pixel_space = "model"
    fresh_each_round = True
    augments = False
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of Adam."""
    generator_options: ClassVar[dict[str, Any]]
    """How its `Generator` differs from the usual one."""
    oh_weight = 0.0
    steps: int = 20
    """Adam steps of the generator a round."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 1000
    width: int = 128
    lr: float = 0.02
    images_per_round: int = 2560  # type: ignore[assignment]
    """Fresh images handed out after the steps; one for each that the student takes by default."""
    conditional: bool = False
    """Whether the generator is told a label beside the noise (see `LabelledGenerator`; published: it is not). Balanced
    labels are then what the class prior and a guide want, in place of the teacher's argmax, and what images keep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    @property
    def uses_targets(self) -> TargetUse:  # type: ignore[override]
        """The labels where it is `conditional`, else nothing."""
        return "labels" if self.conditional else "none"

    @property
    def uses_student(self) -> bool:
        """Where it has such a term, whatever its weight: it is logged."""
        return hasattr(self, "adv_weight")

    @abstractmethod
    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field.

        The images are as they were made, and wanted of each is its label, or else the teacher's argmax.
        """

    def optional_prior(self, batch: StepBatch) -> dict[str, Tensor]:
        """`oh` for the hosts that have none as published: where it has no weight it is neither computed nor logged."""
        return {"oh": batch.oh} if self.oh_weight else {}

    def clip_gradients(self, weights: list[nn.Parameter]) -> None:
        """Do to the gradients of `weights` what is done before a step: nothing."""

    @final
    def init(self, teacher: Teacher, rng: Streams) -> GeneratorState:
        """A generator from stream `init/generator`. Raises `InputError` for a teacher without BN that it reads."""
        if self.reads_bn:
            require_bn(teacher)
        size = (self.latent, self.width, teacher.image_shape)

        def built() -> nn.Module:
            if self.conditional:
                return LabelledGenerator(*size, teacher.num_classes, **self.generator_options)
            return Generator(*size, **self.generator_options)

        generator = drawn(built, "init/generator", teacher.device, rng)
        optimizer = torch.optim.Adam(generator.parameters(), self.lr, betas=self.betas, fused=True)
        return GeneratorState(generator, optimizer)

    @final
    def run(self, state: GeneratorState, targets: Targets, call: Round) -> tuple[Samples, Metrics]:
        """`steps` generator steps, then fresh images, not yet labelled; `targets` are not used.

        If `conditional`, the fresh images have the labels of `targets`, and each step has labels of its own from stream
        `targets`, balanced as well.
        """
        weights = list(state.generator.parameters())

        def move() -> None:
            self.clip_gradients(weights)
            state.optimizer.step()

        def entering(count: int, labels: Tensor | None) -> tuple[Tensor, ...]:
            latents = call.latents(count, self.latent)
            return (latents,) if labels is None else (latents, labels)

        def draw(labels: Tensor) -> Tensor:
            return state.generator(*entering(len(labels), labels if self.conditional else None))

        def losses(batch: StepBatch) -> LossTerms:
            return LossTerms(self.terms(batch, teacher=call.teacher, student=call.student))

        for _ in range(self.steps):
            labels = balanced_labels(self.batch, call.teacher.num_classes, call.rng) if self.conditional else None
            make = partial(state.generator, *entering(self.batch, labels))
            wanted = None if labels is None else Targets(labels)
            call.step(call.forward(make, losses, wanted), weights, move)
        metrics = call.meter.read()
        kept = targets.labels if self.conditional else torch.full_like(targets.labels, UNLABELLED)
        return fresh_images(draw, kept, self.batch), metrics


@torch.no_grad()
def fresh_images(draw: Callable[[Tensor], Tensor], labels: Tensor, batch: int) -> Samples:
    """An image for each of `labels` (N,), N >= 2, `UNLABELLED` where the teacher will name the class.

    `draw` makes those of the labels it is given. It is asked for near-equal parts, as near to `batch` as these allow:
    BN in the generator must never see a single image.
    """
    count = len(labels)
    parts = max(1, min(round(count / batch), count // 2))
    return unseen(torch.cat([draw(part) for part in labels.tensor_split(parts)]), labels)
