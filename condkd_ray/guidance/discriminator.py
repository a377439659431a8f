"""Condensed-sample-guided inversion (Binici et al., arXiv 2408.13850): a discriminator over the teacher's features.

Read of the paper (`methods.md` 1.2): a class-conditional discriminator on the penultimate features separates
condensed from synthetic, its loss is added to the host's with unit weight, and differentiable augmentation keeps it
from over-fitting. The form of the condition, the architecture, optimiser and losses are not known: our choice, all
fields below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.guidance.guidance import Augmentation, Guidance
from condkd_ray.losses.adversarial import fool, tell_apart
from condkd_ray.method import require
from condkd_ray.networks.discriminator import FeatureDiscriminator
from condkd_ray.streams import Streams
from condkd_ray.teacher import Observation, Teacher


@dataclass
class DiscriminatorState:
    """Network, optimiser, and the factor that gives condensed features unit mean square."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class Discriminator(Guidance[DiscriminatorState]):
    r"""Auxiliary-classifier form: one head says real or fake, one names the class.

    D minimises BCE(adv) + CE(cls(real), y); the host adds weight (softplus(-adv(fake)) + CE(cls(fake), y)).
    """

    name: Literal["discriminator"] = "discriminator"
    weight: float = 10.0
    """The paper prints 1. Chosen with `lr`, `hidden` and `augment` on validation images: `experiments/LOG.md`."""
    augment: Augmentation = "condensed"
    steps: int = 1
    """Discriminator steps for each step of the host."""
    lr: float = 2e-3
    hidden: int = 128
    """Units of the first hidden layer; the second has half."""
    class_weight: float = 1.0
    """Weight of the class head's cross-entropy in both losses."""
    spectral_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "discriminator steps", self.steps, "an integer >= 1")
        require(self.hidden >= 2, "discriminator hidden", self.hidden, "an integer >= 2")

    def init(self, teacher: Teacher, condensed: Observation, labels: Tensor, rng: Streams) -> DiscriminatorState:
        """A discriminator from stream `init/guide`."""
        features = condensed.features
        with rng.forked("init/guide"):
            network = FeatureDiscriminator(
                features.shape[1],
                teacher.num_classes,
                hidden=(self.hidden, self.hidden // 2),
                spectral=self.spectral_norm,
            )
        network = network.to(features.device)
        optimizer = torch.optim.Adam(network.parameters(), self.lr, betas=(0.5, 0.999))
        return DiscriminatorState(network, optimizer, features.square().mean().rsqrt())

    def penalty(self, state: DiscriminatorState, seen: Observation, labels: Tensor) -> Tensor:
        """How far the fakes are from passing for condensed images of their class."""
        judged, classes = state.network(seen.features * state.scale)
        return fool(judged) + self.class_weight * F.cross_entropy(classes, labels)

    def update(
        self, state: DiscriminatorState, fake: Observation, real: Observation, labels: Tensor
    ) -> dict[str, Tensor]:
        """`steps` Adam steps; logs the loss and the share of both sides told right (1/2 is chance)."""
        both = torch.cat([real.features, fake.features]) * state.scale
        terms: dict[str, Tensor] = {}
        for _ in range(self.steps):
            judged, classes = state.network(both)
            judged_real, judged_fake = judged.chunk(2)
            adversarial = tell_apart(judged_real, judged_fake)
            naming = F.cross_entropy(classes[: len(labels)], labels)
            state.optimizer.zero_grad()
            (adversarial + self.class_weight * naming).backward()
            state.optimizer.step()
            right = torch.cat([judged_real > 0, judged_fake < 0]).float().mean()
            terms = {"adversarial": adversarial, "class": naming, "accuracy": right}
        return terms
