"""What the inversions have in common that lower a sum of weighted loss terms step by step: the hosts of a guide.

Letters: B batch, C channels, H W height and width.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Meter, Metrics
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.methods.interfaces import Guide, Targets, Weigh
from condkd_ray.methods.inversion.inversion import Inversion, Lowest, State
from condkd_ray.methods.losses.priors import class_prior
from condkd_ray.models.teacher import Observation, Teacher

Network = TypeVar("Network", bound=nn.Module)


class Look(NamedTuple):
    """One step's images (B, C, H, W), plain and `augmented`, what the teacher has `seen` of the latter, and what for.

    `weight` (B,): what each image counts in the terms that are a mean over images.
    """

    images: Tensor
    augmented: Tensor
    seen: Observation
    targets: Targets
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of the images' `values` (B,), a scalar."""
        return (self.weight * values).mean()

    @property
    def oh(self) -> Tensor:
        """The weighted mean cross-entropy of the teacher's answers with what was wanted, a scalar."""
        targets = self.targets
        return self.mean(class_prior(self.seen.logits, targets.answers, targets.temperature))


@dataclass
class Round:
    """One call of `synthesize`: what it was given, the means of its terms, and the step of lowest loss."""

    host: "Host"
    teacher: Teacher
    student: nn.Module
    guide: Guide
    weigh: Weigh
    rng: Streams
    meter: Meter = field(default_factory=lambda: Meter("inversion"))
    lowest: Lowest = field(default_factory=Lowest)

    def latents(self, *shape: int) -> Tensor:
        """Standard normal values from stream `latents`."""
        return torch.randn(shape, generator=self.rng["latents"], device=self.rng.device)

    def look(self, images: Tensor, targets: Targets | None = None, *, input_means: Sequence[str] = ()) -> Look:
        """Augment and observe; without `targets` the teacher's argmax serves."""
        augmented = images
        if self.host.augments:
            augmented = self.host.augment(images, teacher=self.teacher, rng=self.rng["augment/inversion"])
        seen = self.teacher.observe(augmented, self.guide.layers, bn=self.host.reads_bn, input_means=input_means)
        targets = Targets(seen.logits.argmax(1)) if targets is None else targets
        return Look(images, augmented, seen, targets, self.weigh(seen, targets.labels))

    def step(
        self,
        look: Look,
        terms: dict[str, Tensor],
        leaves: Sequence[Tensor],
        move: Callable[[], object],
        *kept: Tensor,
    ) -> Sequence[Tensor]:
        """Give `leaves` the gradients of the loss, `move` them, and let the guide learn; returns the gradients.

        The loss is the sum of `<name>_weight` times each of `terms` and of the guide's penalty. Nothing else collects
        gradients. What is `kept` of the step of lowest loss stands in `lowest` afterwards.
        """
        pull = self.guide.penalty(look.images, look.seen, look.targets.labels)
        weighted = [getattr(self.host, f"{name}_weight") * term for name, term in terms.items()]
        first, *others = [pull, *weighted] if self.host.penalty_first else [*weighted, pull]
        loss = sum(others, first)
        gradients = torch.autograd.grad(loss, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        if kept:
            self.lowest.offer(loss, *kept)
        move()
        self.guide.update(look.images.detach(), look.seen.detach(), look.targets.labels)
        self.meter.add(**terms, guide=pull, loss=loss)
        return gradients


class Host(Inversion[State]):
    """Base of the inversions that lower a loss; a host's own part is `run`."""

    penalty_first: ClassVar[bool] = False
    """Whether the guide's penalty is the first summand of the loss or the last, which shows in its last bits."""

    @final
    def synthesize(
        self,
        state: State,
        targets: Targets,
        *,
        teacher: Teacher,
        student: nn.Module,
        guide: Guide,
        weigh: Weigh,
        rng: Streams,
    ) -> tuple[Samples, Metrics]:
        """See `Inversion.synthesize`."""
        return self.run(state, targets, Round(self, teacher, student, guide, weigh, rng))

    @abstractmethod
    def run(self, state: State, targets: Targets, now: Round) -> tuple[Samples, Metrics]:
        """`synthesize`, with all that surrounds it as one value."""


def drawn(make: Callable[[], Network], stream: str, teacher: Teacher, rng: Streams) -> Network:
    """The network that `make` builds with the draws of `stream`, on the teacher's device, in channels-last format."""
    with rng.forked(stream):
        network = make()
    return network.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
