"""Base of the unconditional hosts: a generator of noise alone, some steps of it, then fresh images.

Letters: B batch, C channels, H W height and width.
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
from condkd_ray.core.samples import Samples, unlabelled
from condkd_ray.methods.inversion.inversion import Host, Judged, Look, Round, require_bn
from condkd_ray.methods.targets import Targets
from condkd_ray.models.generator import Generator
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
    hears = "nothing"
    fresh = True
    augments = False
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of Adam."""
    form: ClassVar[dict[str, Any]]
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, least in (("steps", 1), ("batch", 2), ("images_per_round", 2)):
            require(getattr(self, what) >= least, f"inversion {what}", getattr(self, what), f"an integer >= {least}")

    @property
    def asks_student(self) -> bool:
        """Where it has such a term, whatever its weight: it is logged."""
        return hasattr(self, "adv_weight")

    @abstractmethod
    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Scalars to minimise, by names whose `<name>_weight` is a field.

        The images are as they were made, and wanted of each is the teacher's argmax.
        """

    def own_prior(self, look: Look) -> dict[str, Tensor]:
        """`oh` for the hosts that have none as published: where it has no weight it is neither computed nor logged."""
        return {"oh": look.oh} if self.oh_weight else {}

    def limit(self, weights: list[nn.Parameter]) -> None:
        """Do to the gradients of `weights` what is done before a step: nothing."""

    @final
    def init(self, teacher: Teacher, rng: Streams) -> GeneratorState:
        """A generator from stream `init/generator`. Raises `InputError` for a teacher without BN that it reads."""
        if self.reads_bn:
            require_bn(teacher)
        size = (self.latent, self.width, teacher.image_shape)
        generator = drawn(lambda: Generator(*size, **self.form), "init/generator", teacher.device, rng)
        optimizer = torch.optim.Adam(generator.parameters(), self.lr, betas=self.betas, fused=True)
        return GeneratorState(generator, optimizer)

    @final
    def run(self, state: GeneratorState, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`steps` generator steps, then fresh images, not yet labelled; `targets` are not used."""
        weights = list(state.generator.parameters())

        def move() -> None:
            self.limit(weights)
            state.optimizer.step()

        def images(count: int) -> Tensor:
            return state.generator(now.latents(count, self.latent))

        def judge(look: Look) -> Judged:
            return Judged(self.terms(look, teacher=now.teacher, student=now.student))

        for _ in range(self.steps):
            latents = now.latents(self.batch, self.latent)
            now.step(now.attempt(partial(state.generator, latents), judge), weights, move)
        metrics = now.meter.read()
        return fresh_images(images, self.images_per_round, self.batch), metrics


@torch.no_grad()
def fresh_images(draw: Callable[[int], Tensor], count: int, batch: int) -> Samples:
    """`count` >= 2 images of an unconditional generator, not yet labelled.

    `draw` makes as many as it is told to. It is asked for near-equal parts, as near to `batch` as these allow: BN in
    the generator must never see a single image.
    """
    parts = max(1, min(round(count / batch), count // 2))
    images = torch.cat([draw(len(part)) for part in torch.arange(count).tensor_split(parts)])
    return unlabelled(images)
