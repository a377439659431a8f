"""Condensed-sample-guided inversion (Binici et al., arXiv 2408.13850): a discriminator over the teacher's features.

Read of the paper (`methods.md` 1.2): a class-conditional discriminator on the penultimate features separates
condensed from synthetic, its loss is added to the host's with unit weight, and differentiable augmentation keeps it
from over-fitting. The form of the condition, the architecture, optimiser and losses are not known: our choice (1.5),
all fields below.

Letters: B batch, D features, K classes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from condkd_ray.core.compilation import whole
from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import ONE_LAYER, Augmentation, Guidance, GuidanceState, Layout
from condkd_ray.models.teacher import Teacher

Condition = Literal["auxiliary", "projection", "per_class", "none"]
GanLoss = Literal["non_saturating", "hinge"]


class FeatureDiscriminator(nn.Module):
    """Features (B, D) and labels (B,) to a real-or-fake logit (B,), and class logits (B, K) where it has a head.

    `auxiliary`: a second head names the class. `projection`: the inner product of the hidden layer with an embedding of
    the label is added. `per_class`: one logit a class, of which the label's counts. `none`: labels are not looked at.
    Two hidden layers; `spectral` bounds each layer's norm by 1, since the real side has only K x ipc images.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        hidden: tuple[int, int] = (512, 256),
        spectral: bool,
        condition: Condition = "projection",
    ) -> None:
        super().__init__()

        def bounded(layer: nn.Module) -> nn.Module:
            return spectral_norm(layer) if spectral else layer

        self.trunk = nn.Sequential(
            bounded(nn.Linear(features, hidden[0])),
            nn.LeakyReLU(0.2),
            bounded(nn.Linear(hidden[0], hidden[1])),
            nn.LeakyReLU(0.2),
        )
        self.adversarial = bounded(nn.Linear(hidden[1], num_classes if condition == "per_class" else 1))
        self.classes = bounded(nn.Linear(hidden[1], num_classes)) if condition == "auxiliary" else None
        self.embedding = None
        if condition == "projection":
            embedding = nn.Embedding(num_classes, hidden[1])
            # At its own unit variance the labels would outweigh the features from the start.
            nn.init.normal_(embedding.weight, std=hidden[1] ** -0.5)
            self.embedding = bounded(embedding)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, D), (B,) to ((B,), (B, K) or None), float32 also under autocast: losses read them."""
        x = self.trunk(features)
        judged = self.adversarial(x).float()
        judged = judged.squeeze(1) if judged.shape[1] == 1 else judged.gather(1, labels[:, None]).squeeze(1)
        if self.embedding is not None:
            judged = judged + (self.embedding(labels) * x).sum(1).float()
        return judged, None if self.classes is None else self.classes(x).float()


def discriminator_loss(real: Tensor, fake: Tensor, form: GanLoss = "non_saturating", smoothing: float = 0.0) -> Tensor:
    """The discriminator's loss on its (B,) logits, a scalar.

    `non_saturating`: binary cross-entropy, 2 ln 2 where it knows nothing; real ones have the target 1 - `smoothing`.
    `hinge`: what each logit lacks to the right side's margin of 1; `smoothing` has no part in it.
    """
    if form == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    # BCE with target 1 - s is softplus(-x) + s x.
    return (F.softplus(-real) + smoothing * real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, form: GanLoss = "non_saturating") -> Tensor:
    """The loss of whoever made `fake`, (B,) logits to a scalar: -log D, or minus the logit under `hinge`."""
    return -fake.mean() if form == "hinge" else F.softplus(-fake).mean()


def gradient_penalty(judged: Tensor, at: Tensor) -> Tensor:
    """R1: half the mean squared norm of the gradient of (B,) logits at their inputs `at` (B, D); keeps its graph."""
    (gradient,) = torch.autograd.grad(judged.sum(), at, create_graph=True)
    return 0.5 * gradient.square().sum(1).mean()


@dataclass
class DiscriminatorState(GuidanceState):
    """Network, optimiser, and the factor, or factors (D,), that give condensed features unit mean square."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class Discriminator(Guidance[DiscriminatorState]):
    r"""D tells condensed from synthetic features, given the class; the host is to make it say condensed.

    With the auxiliary head D minimises BCE(adv) + c CE(cls(real), y), and the host adds
    weight (a softplus(-adv(fake)) + c CE(cls(fake), y)), a the adversarial and c the class weight. Other conditions
    have no second term. Of several layers it sees all features side by side.

    At small budgets its images lie nearer to real ones than those of a tempered class prior alone; that the student
    learns more from them is not shown: the claim `core`, `experiments/LOG.md`.

    Whether D tells fakes from condensed images, or only images it has seen from others, shows in `perfect_accuracy`
    beside `accuracy`: what it has where the fakes are perfect, being condensed images held out, under the same views.
    """

    paper = "Binici et al., arXiv 2408.13850 (AAAI 2026)"
    ours = (
        *("weight", "augment", "stages", "stages_weight", "alignment", "mixup", "noise", "schedule", "from_guides"),
        *("condition", "loss", "steps", "optimizer", "lr", "hidden"),
        *("adversarial_weight", "class_weight", "spectral_norm", "r1_weight", "label_smoothing"),
        *("instance_noise", "held_out"),
    )
    name: Literal["discriminator"] = "discriminator"
    weight: float = 100.0
    """The paper prints 1. Chosen with `condition`; `lr` and `hidden` on validation images of digits, for the class head
    under `augment: condensed`: `experiments/LOG.md`."""
    augment: Augmentation = "host"
    """`host` and `dsa` show D both sides under one family of views: the host's, for one teacher pass over the fakes, or
    DSA's. `condensed` has DSA on the condensed side alone, and D can live on that difference: of perfect fakes, real
    images held out, it told 0.638 right there, 0.590 with `host` and 0.554 with `dsa`, where 0.5 is chance."""
    condition: Condition = "projection"
    """How D hears of the class: a second head, a projection of the label, one logit a class, or not at all. `none` is
    marginal alignment, whichever `alignment` is given, and the only condition that goes with `alignment: marginal`.
    Chosen on CIFAR-10's validation images beside the class prior of guided arms: the claim `choosing_guidance`."""
    loss: GanLoss = "non_saturating"
    steps: int = 1
    """Discriminator steps for each step of the host."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam with betas (0.5, 0.999), or SGD with momentum 0.9."""
    lr: float = 2e-3
    hidden: int = 128
    """Units of the first hidden layer; the second has half."""
    adversarial_weight: float = 1.0
    """Weight of passing for condensed in what the host adds; at 0 the auxiliary head alone guides."""
    class_weight: float = 1.0
    """Weight of the auxiliary head's cross-entropy in both losses; no other condition has that head or looks here."""
    spectral_norm: bool = True
    r1_weight: float = 0.0
    """Weight of R1, the squared gradient of D at condensed features; 0 leaves it out."""
    label_smoothing: float = 0.0
    """Condensed ones have the target 1 less this (one-sided), against over-fitting few guides."""
    instance_noise: float = 0.0
    """Standard deviation of Gaussian noise on all D sees, of both sides, in units of the features' root mean square;
    `noise` is on the condensed side alone."""
    held_out: float = 0.1  # type: ignore[assignment]
    """Share of each class's condensed images D never learns from, rounded down: by default one of 10, none of 5. Its
    `held_out_accuracy` on them, well below `real_accuracy`, says that it has learnt its guides by heart. Without any,
    neither this nor `perfect_accuracy` is logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "discriminator steps", self.steps, "an integer >= 1")
        require(self.hidden >= 2, "discriminator hidden", self.hidden, "an integer >= 2")
        require(0 <= self.held_out < 1, "discriminator held_out", self.held_out, "0 <= share < 1")
        smooth = self.label_smoothing
        require(0 <= smooth < 0.5, "discriminator label_smoothing", smooth, "0 <= smoothing < 0.5")
        require(smooth == 0 or self.loss != "hinge", "label_smoothing under loss hinge", smooth, "0, or non_saturating")
        conditional = self.alignment == "marginal" and self.condition != "none"
        only = "none (no class is looked at), or alignment class"
        require(not conditional, "discriminator condition under alignment marginal", self.condition, only)
        noise = self.instance_noise
        require(0 <= noise < math.inf, "discriminator instance_noise", noise, "a number >= 0")

    @property
    def class_conditional(self) -> bool:
        """Where the term that looks at labels has a weight; the condition `none` has no such term."""
        by_class_head = self.condition == "auxiliary"
        weight = self.class_weight if by_class_head else self.adversarial_weight
        return super().class_conditional and self.condition != "none" and weight > 0

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> DiscriminatorState:
        """A discriminator from stream `init/guide`."""
        with rng.forked("init/guide"):
            network = FeatureDiscriminator(
                condensed.shape[1],
                teacher.num_classes,
                hidden=(self.hidden, self.hidden // 2),
                spectral=self.spectral_norm,
                condition=self.condition,
            )
        network = network.to(condensed.device)
        if self.optimizer == "adam":
            betas = (0.5, 0.999)
            optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), self.lr, betas=betas, fused=True)
        else:
            optimizer = torch.optim.SGD(network.parameters(), self.lr, momentum=0.9, fused=True)
        scale = condensed.square().mean().rsqrt()
        if layout.widths:
            stages = condensed.shape[1] - layout.widths[0]
            factor = scale.new_full((stages,), self.stages_weight**0.5)
            scale = scale * torch.cat([scale.new_ones(layout.widths[0]), factor])
        return DiscriminatorState(network, optimizer, scale)

    def penalty(self, state: DiscriminatorState, fake: Tensor, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """How far the fakes are from passing for condensed images of their class."""
        return host_penalty(self, state.network, self._noisy(fake * state.scale, rng), labels)

    def update(
        self, state: DiscriminatorState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """`steps` steps; logs the losses and the share told right (1/2 is chance), of both sides and of the real."""
        terms: dict[str, Tensor] = {}
        for _ in range(self.steps):
            terms = self._step(state, torch.cat([real, fake]) * state.scale, labels, rng)
        return terms

    def _step(self, state: DiscriminatorState, both: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        both = self._noisy(both, rng).requires_grad_(self.r1_weight > 0)
        # R1 is a gradient of a gradient, which the compiler does not take.
        tell = discriminator_terms.uncompiled if self.r1_weight else discriminator_terms
        loss, terms = tell(self, state.network, both, labels)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        return terms

    def evaluate_held_out(
        self,
        state: DiscriminatorState,
        shown: Tensor,
        held_out: Tensor,
        fakes: Tensor,
        labels: Tensor,
        *,
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """`held_out_accuracy`: the share of condensed images it never learnt from that it takes for condensed.

        `perfect_accuracy`: its accuracy where these play the `fakes`, against condensed images it was `shown`.
        """

        def judge(features: Tensor) -> Tensor:
            return state.network(self._noisy(features * state.scale, rng), labels)[0]

        # In training mode each pass would move the spectral norm's estimate, and so what is learnt.
        state.network.eval()
        taken, right_fake, right_real = judge(held_out) > 0, judge(fakes) < 0, judge(shown) > 0
        state.network.train()
        perfect = (right_fake.float().mean() + right_real.float().mean()) / 2
        return {"held_out_accuracy": taken.float().mean(), "perfect_accuracy": perfect}

    def _noisy(self, features: Tensor, rng: torch.Generator) -> Tensor:
        if not self.instance_noise:
            return features
        noise = torch.randn(features.shape, generator=rng, device=features.device)
        return features + self.instance_noise * noise


@whole
def host_penalty(guidance: Discriminator, network: nn.Module, fake: Tensor, labels: Tensor) -> Tensor:
    """What the host adds for scaled features (B, D), a scalar."""
    judged, classes = network(fake, labels)
    loss = guidance.adversarial_weight * generator_loss(judged, guidance.loss)
    return loss if classes is None else loss + guidance.class_weight * F.cross_entropy(classes, labels)


@whole
def discriminator_terms(
    guidance: Discriminator, network: nn.Module, both: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """D's loss for scaled real and fake features (2B, D) of `labels` (B,), and its terms to be logged."""
    judged, classes = network(both, labels.repeat(2))
    judged_real, judged_fake = judged.chunk(2)
    told = discriminator_loss(judged_real, judged_fake, guidance.loss, guidance.label_smoothing)
    loss, terms = told, {"adversarial": told}
    if classes is not None:
        terms["class"] = F.cross_entropy(classes[: len(labels)], labels)
        loss = loss + guidance.class_weight * terms["class"]
    if guidance.r1_weight:
        # The gradient of the real half alone: its sum does not look at the fakes.
        terms["r1"] = 2 * gradient_penalty(judged_real, both)
        loss = loss + guidance.r1_weight * terms["r1"]
    right_real, right_fake = (judged_real > 0).float().mean(), (judged_fake < 0).float().mean()
    return loss, terms | {"accuracy": (right_real + right_fake) / 2, "real_accuracy": right_real}
