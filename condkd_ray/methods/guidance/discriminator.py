"""Condensed-sample-guided inversion (Binici et al., arXiv 2408.13850): a discriminator of the teacher's features.

The paper adds to the loss of the host (the inversion method that is guided), with unit weight, the loss of a
class-conditional discriminator, which separates condensed from synthetic images by their penultimate features;
differentiable augmentation keeps it from overfitting (after a published summary of the paper; there is no public code).
Not known, so our choice and a field each: the form of the condition, the architecture, the optimiser and the losses.

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
from condkd_ray.core.task import BOTH
from condkd_ray.methods.guidance.guidance import ONE_LAYER, Augmentation, Guidance, GuidanceState, Layout
from condkd_ray.models.network import seeded_module
from condkd_ray.models.teacher import Teacher

Condition = Literal["auxiliary", "projection", "per_class", "none"]
GanLoss = Literal["non_saturating", "hinge"]


class FeatureDiscriminator(nn.Module):
    """Maps features (B, D) and labels (B,) to real-or-fake logits (B,), and to class logits (B, K) if `auxiliary`.

    `auxiliary`: a second head predicts the class. `projection`: the inner product of the hidden layer with an embedding
    of the label is added. `per_class`: one logit per class; the logit of the label is used. `none`: labels are ignored.
    Two hidden layers; `spectral` bounds each layer's norm by 1, since there are only K x ipc real images.
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
            # With the default unit variance the labels would outweigh the features at the start.
            nn.init.normal_(embedding.weight, std=hidden[1] ** -0.5)
            self.embedding = bounded(embedding)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return real-or-fake logits (B,) and class logits, (B, K) or None, of features (B, D) and labels (B,).

        Both are float32, under autocast too, because losses use them.
        """
        x = self.trunk(features)
        logits = self.adversarial(x).float()
        logits = logits.squeeze(1) if logits.shape[1] == 1 else logits.gather(1, labels[:, None]).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * x).sum(1).float()
        return logits, None if self.classes is None else self.classes(x).float()


def discriminator_loss(real: Tensor, fake: Tensor, form: GanLoss = "non_saturating", smoothing: float = 0.0) -> Tensor:
    """Return the discriminator's loss on its (B,) logits, a scalar.

    `non_saturating`: binary cross-entropy, 2 ln 2 without any information; the target of real images is 1 -
    `smoothing`. `hinge`: the distance of each logit from the margin of 1 on its own side; `smoothing` is not used.
    """
    if form == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    # BCE with target 1 - s is softplus(-x) + s x.
    return (F.softplus(-real) + smoothing * real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, form: GanLoss = "non_saturating") -> Tensor:
    """Return the loss of the generator of `fake`, (B,) logits to a scalar: -log D, or minus the logit under `hinge`."""
    return -fake.mean() if form == "hinge" else F.softplus(-fake).mean()


def gradient_penalty(logits: Tensor, at: Tensor) -> Tensor:
    """Return R1, half the mean squared norm of the gradient of (B,) logits with respect to `at` (B, D), with graph."""
    (gradient,) = torch.autograd.grad(logits.sum(), at, create_graph=True)
    return 0.5 * gradient.square().sum(1).mean()


@dataclass
class DiscriminatorState(GuidanceState):
    """Network, optimiser, and the factor, or factors (D,), that scale condensed features to unit mean square."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class Discriminator(Guidance[DiscriminatorState]):
    """A discriminator D separates condensed from synthetic features given the class; the host is trained to fool D.

    With the auxiliary head D minimises BCE(adv) + c CE(cls(real), y), and the host adds weight (a softplus(-adv(fake))
    + c CE(cls(fake), y)), where a is the adversarial and c the class weight. Other conditions have no second term. With
    several layers, D gets all features side by side.

    At small budgets its images are closer to real ones than those of a tempered class prior alone; that the student
    learns more from them has not been shown: claim `core` in `experiments/LOG.md`.

    `perfect_accuracy`, compared with `accuracy`, indicates whether D separates fakes from condensed images or only its
    training images from all others: it is D's accuracy if the fakes are perfect, namely held-out condensed images under
    the same augmentation.
    """

    tasks = BOTH
    paper = "Binici et al., arXiv 2408.13850 (AAAI 2026)"
    ours = (
        *("weight", "augment", "stages", "stages_weight", "alignment", "mixup", "noise", "schedule", "from_guides"),
        *("regions", "condition", "loss", "steps", "optimizer", "lr", "hidden"),
        *("adversarial_weight", "class_weight", "spectral_norm", "r1_weight", "label_smoothing"),
        *("instance_noise", "held_out"),
    )
    name: Literal["discriminator"] = "discriminator"
    weight: float = 100.0
    """The paper has 1. Chosen together with `condition`; `lr` and `hidden` were chosen on validation images of digits,
    for the auxiliary head under `augment: condensed`: `experiments/LOG.md`."""
    augment: Augmentation = "host"
    """`host` and `dsa` give D both sides under the same kind of augmentation: the host's, which needs one teacher pass
    over the fakes, or DSA. `condensed` applies DSA to the condensed side only, and D can succeed by that difference:
    for perfect fakes, that is held-out real images, its accuracy was 0.638, against 0.590 with `host` and 0.554 with
    `dsa`; chance is 0.5."""
    condition: Condition = "projection"
    """Form of the class condition in D: a second head, a projection of the label, one logit per class, or none. `none`
    is marginal alignment, whatever `alignment` is, and is the only condition accepted with `alignment: marginal`.
    Chosen on CIFAR-10's validation images together with the class prior of guided arms: claim `choosing_guidance` in
    `experiments/LOG.md`."""
    loss: GanLoss = "non_saturating"
    """Adversarial losses of D and of the host: see `discriminator_loss` and `generator_loss`."""
    steps: int = 1
    """Discriminator steps per step of the host."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam with betas (0.5, 0.999), or SGD with momentum 0.9."""
    lr: float = 2e-3
    """Learning rate of D."""
    hidden: int = 128
    """Units of the first hidden layer; the second has half as many."""
    adversarial_weight: float = 1.0
    """Weight of the adversarial term in the host's penalty; at 0 only the auxiliary head guides."""
    class_weight: float = 1.0
    """Weight of the auxiliary head's cross-entropy in both losses; used with `condition: auxiliary` only."""
    spectral_norm: bool = True
    """If true, the weights of each layer of D are divided by an estimate of their spectral norm."""
    r1_weight: float = 0.0
    """Weight of R1, the squared gradient of D at condensed features; 0 disables it."""
    label_smoothing: float = 0.0
    """The target of condensed images is 1 minus this (one-sided), against overfitting to few of them."""
    instance_noise: float = 0.0
    """Standard deviation of Gaussian noise on all inputs of D, of both sides, in units of the features' root mean
    square; `noise` acts on the condensed side only."""
    held_out: float = 0.1  # type: ignore[assignment]
    """Share of each class's condensed images that D is not trained on, in segmentation of all of them, rounded down: by
    default one of 10, none of 5. A `held_out_accuracy` on them well below `real_accuracy` shows that D has memorised
    its training images. Without any, neither this nor `perfect_accuracy` is recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "discriminator steps", self.steps, "an integer >= 1")
        require(self.hidden >= 2, "discriminator hidden", self.hidden, "an integer >= 2")
        require(0 <= self.held_out < 1, "discriminator held_out", self.held_out, "0 <= share < 1")
        smooth = self.label_smoothing
        require(0 <= smooth < 0.5, "discriminator label_smoothing", smooth, "0 <= smoothing < 0.5")
        require(smooth == 0 or self.loss != "hinge", "label_smoothing under loss hinge", smooth, "0, or non_saturating")
        conditional = self.alignment == "marginal" and self.condition != "none"
        only = "none (classes are ignored), or alignment class"
        require(not conditional, "discriminator condition under alignment marginal", self.condition, only)
        noise = self.instance_noise
        require(0 <= noise < math.inf, "discriminator instance_noise", noise, "a number >= 0")

    @property
    def class_conditional(self) -> bool:
        """True if the term that depends on the labels has a weight; condition `none` has no such term."""
        by_class_head = self.condition == "auxiliary"
        weight = self.class_weight if by_class_head else self.adversarial_weight
        return super().class_conditional and self.condition != "none" and weight > 0

    def init(
        self, teacher: Teacher, condensed: Tensor, labels: Tensor, rng: Streams, layout: Layout = ONE_LAYER
    ) -> DiscriminatorState:
        """Return a discriminator from stream `init/guide`."""

        def built() -> FeatureDiscriminator:
            return FeatureDiscriminator(
                condensed.shape[1],
                teacher.num_classes,
                hidden=(self.hidden, self.hidden // 2),
                spectral=self.spectral_norm,
                condition=self.condition,
            )

        network = seeded_module(built, "init/guide", condensed.device, rng)
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
        """Return the loss of the host: it is large if D classifies the fakes as synthetic."""
        return host_penalty(self, state.network, self._noisy(fake * state.scale, rng), labels)

    def update(
        self, state: DiscriminatorState, fake: Tensor, real: Tensor, labels: Tensor, *, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Take `steps` steps; returns the losses and the accuracies (chance: 1/2) on both sides and the real side."""
        terms: dict[str, Tensor] = {}
        for _ in range(self.steps):
            terms = self._step(state, torch.cat([real, fake]) * state.scale, labels, rng)
        return terms

    def _step(self, state: DiscriminatorState, both: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        both = self._noisy(both, rng).requires_grad_(self.r1_weight > 0)
        # R1 is a gradient of a gradient, which the compiler does not support.
        compute = discriminator_terms.uncompiled if self.r1_weight else discriminator_terms
        loss, terms = compute(self, state.network, both, labels)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        return terms

    def evaluate_held_out(
        self,
        state: DiscriminatorState,
        learnt: Tensor,
        held_out: Tensor,
        fakes: Tensor,
        labels: Tensor,
        *,
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return D's accuracies on held-out condensed images.

        `held_out_accuracy`: the share of `held_out` that D classifies as condensed. `perfect_accuracy`: D's accuracy if
        they are the `fakes`, compared with condensed images that it was trained on, `learnt`.
        """

        def real_logits(features: Tensor) -> Tensor:
            return state.network(self._noisy(features * state.scale, rng), labels)[0]

        # In training mode each pass would update the estimate of the spectral norm, and so change the training.
        state.network.eval()
        accepted, right_fake, right_real = real_logits(held_out) > 0, real_logits(fakes) < 0, real_logits(learnt) > 0
        state.network.train()
        perfect = (right_fake.float().mean() + right_real.float().mean()) / 2
        return {"held_out_accuracy": accepted.float().mean(), "perfect_accuracy": perfect}

    def _noisy(self, features: Tensor, rng: torch.Generator) -> Tensor:
        if not self.instance_noise:
            return features
        noise = torch.randn(features.shape, generator=rng, device=features.device)
        return features + self.instance_noise * noise


@whole
def host_penalty(guidance: Discriminator, network: nn.Module, fake: Tensor, labels: Tensor) -> Tensor:
    """Return the penalty in the host's loss for scaled features (B, D), a scalar."""
    logits, classes = network(fake, labels)
    loss = guidance.adversarial_weight * generator_loss(logits, guidance.loss)
    return loss if classes is None else loss + guidance.class_weight * F.cross_entropy(classes, labels)


@whole
def discriminator_terms(
    guidance: Discriminator, network: nn.Module, both: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return D's loss for scaled real, then fake features (2B, D) of `labels` (B,), and its terms to record."""
    logits, classes = network(both, labels.repeat(2))
    real_logits, fake_logits = logits.chunk(2)
    adversarial = discriminator_loss(real_logits, fake_logits, guidance.loss, guidance.label_smoothing)
    loss, terms = adversarial, {"adversarial": adversarial}
    if classes is not None:
        terms["class"] = F.cross_entropy(classes[: len(labels)], labels)
        loss = loss + guidance.class_weight * terms["class"]
    if guidance.r1_weight:
        # The gradient of the real half only: the sum of its logits does not depend on the fakes.
        terms["r1"] = 2 * gradient_penalty(real_logits, both)
        loss = loss + guidance.r1_weight * terms["r1"]
    right_real, right_fake = (real_logits > 0).float().mean(), (fake_logits < 0).float().mean()
    return loss, terms | {"accuracy": (right_real + right_fake) / 2, "real_accuracy": right_real}
