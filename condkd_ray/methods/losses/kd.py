"""Distillation losses between student and teacher, one value per sample.

In segmentation, logits are (B, K, H, W) and labels (B, H, W); the loss of an image is the mean over its labelled pixels
(the mean is our choice; leaving out pixels without a label is usual). Letters: B batch, C channels, H W height and
width, K classes. Formulas and defaults follow the released code of the
methods that are named.

DKD's formulas are the paper's; alpha 1, beta 8 and tau 4 are the authors' released settings for CIFAR-100. Their
cross-entropy with true labels and its warm-up of epochs are left out: a synthetic image has no true label, and the
student's learning rate has its own warm-up (our choice).

Attention transfer is added to Hinton's KL, as in ZSKT's released code (Micaelli and Storkey, NeurIPS 2019: weight 250,
temperature 1, attention as the normalised channel mean of squared activations); the attention maps are those of
Zagoruyko and Komodakis, ICLR 2017.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.families import Family
from condkd_ray.core.method import Method, require
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.core.task import BOTH
from condkd_ray.models.hooks import spatial_layers
from condkd_ray.models.teacher import Teacher

NAMES = "one or more names of layers, such as stages.0 stages.1"


class NetworkOutputs(NamedTuple):
    """A network's `logits` (B, K), and the outputs of the layers that the loss compares, (B, C, H, W) each."""

    logits: Tensor
    taps: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KdLoss(Method, ABC):
    """Base class of the distillation losses: one value per sample, from the outputs of student and teacher."""

    @property
    def layer_pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer) for each pair that the loss compares; most losses compare the logits only."""
        return ()

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError` if the networks lack what the loss compares."""

    @abstractmethod
    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) float32 losses for images of the classes `labels` (B,), in segmentation (B, H, W)."""


def per_image(values: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return (B,) means of values (B, H, W) over the pixels with a label, of `labels` (B, H, W); values (B,) as is.

    Without `labels` all pixels count. The mean of an image without any label is 0.
    """
    if values.ndim == 1:
        return values
    if labels is None:
        return values.flatten(1).mean(1)
    known = (labels != UNLABELLED).flatten(1)
    # Not a product: a value without a label may be infinite.
    return values.flatten(1).where(known, 0).sum(1) / known.sum(1).clamp_min(1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)): (B, K) logits of both to (B,); (B, K, H, W) to (B, H, W)."""
    log_student, log_teacher = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return Hinton's loss, tau^2 KL at temperature tau, in the shapes of `divergence`.

    tau^2 keeps the gradient's size.
    """
    return temperature**2 * divergence(student.float() / temperature, teacher.float() / temperature)


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean absolute difference of (B, K) logits: (B,); (B, K, H, W) to (B, H, W)."""
    return (student.float() - teacher.float()).abs().mean(1)


@dataclass(frozen=True, kw_only=True)
class Hinton(KdLoss):
    """Hinton's KL: tau^2 KL(softmax(t / tau) || softmax(s / tau)). Fast and CMI use tau = 20.

    With `memory: prioritized` and `divide_by: largest` it becomes SSD-KD's mean(w / max(w) tau^2 KL): a student step
    takes the mean of weights times losses, and the weights are then w / max(w).
    """

    paper = "Hinton et al., arXiv 1503.02531"
    tasks = BOTH
    name: Literal["hinton"] = "hinton"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses."""
        return per_image(softened(student.logits, teacher.logits, self.temperature), labels)


@dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy(KdLoss):
    r"""Cross-entropy with the teacher's softmax: -tau^2 \sum_k softmax(t / tau)_k log softmax(s / tau)_k.

    ZSKD distils its images with it; the loss of Wang's soft targets is not known and assumed to be the same. Its
    gradient equals the gradient of Hinton's KL, but its minimum is the teacher's entropy instead of 0.
    """

    paper = "Nayak et al., ICML 2019"
    tasks = BOTH
    name: Literal["soft_ce"] = "soft_ce"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses."""
        tau = self.temperature
        wanted = F.softmax(teacher.logits.float() / tau, dim=1)
        loss = -(tau**2) * (wanted * F.log_softmax(student.logits.float() / tau, dim=1)).sum(1)
        return per_image(loss, labels)


@dataclass(frozen=True, kw_only=True)
class LogitL1(KdLoss):
    """Mean absolute difference of the logits, the loss of DFAD, PRE-DFKD and the re-runs of MB-DFKD."""

    tasks = BOTH
    name: Literal["l1"] = "l1"

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses."""
        return per_image(logit_l1(student.logits, teacher.logits), labels)


@dataclass(frozen=True, kw_only=True)
class Dkd(KdLoss):
    """tau^2 (alpha TCKD + beta NCKD), both KL(teacher || student) at temperature tau.

    TCKD compares the two probabilities (p_y, 1 - p_y) of the sample's label y, NCKD the softmaxes over the other K - 1
    classes. Hinton's KL is TCKD + (1 - p_y of the teacher) NCKD, so that the other classes have almost no weight on
    images that the teacher classifies with certainty.
    """

    paper = "Zhao et al., CVPR 2022"
    name: Literal["dkd"] = "dkd"
    alpha: float = 1.0
    """Weight of TCKD."""
    beta: float = 8.0
    """Weight of NCKD. Other released settings: 2 for resnet56 to resnet20; 0.5, at tau 1, on ImageNet."""
    temperature: float = 4.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        for what in ("alpha", "beta"):
            require(getattr(self, what) >= 0, f"dkd {what}", getattr(self, what), ">= 0")

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses."""
        tau = self.temperature
        binary, others = _parts(student.logits.float() / tau, labels)
        teacher_binary, teacher_others = _parts(teacher.logits.float() / tau, labels)
        decoupled = self.alpha * divergence(binary, teacher_binary) + self.beta * divergence(others, teacher_others)
        return tau**2 * decoupled


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of "the label or not" (B, 2), and those of the other classes (B, K - 1)."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    # With a gather, because a mask needs a count on the CPU, and -inf in the label's place gives NaN in a KL.
    others = logits.gather(1, index + (index >= labels[:, None]))
    return torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], 1), others


@dataclass(frozen=True, kw_only=True)
class Attention(KdLoss):
    r"""tau^2 KL + weight \sum_l mean((a_l(student) - a_l(teacher))^2) over pairs of layers l and the positions of maps.

    The attention a is the mean over the channels of squared activations, flattened and scaled to length 1. If the maps
    of a pair differ in size, each is first averaged down to the smaller height and width (our choice).
    """

    paper = "Zagoruyko and Komodakis, ICLR 2017"
    ours = ("teacher_layers", "student_layers")
    tasks = BOTH
    name: Literal["attention"] = "attention"
    teacher_layers: tuple[str, ...]
    """Names of the teacher's layers, shallow to deep. There is no default, because networks name their stages
    differently; an unknown name is refused with a list of the valid ones."""
    student_layers: tuple[str, ...]
    """Names of as many student layers; each is matched with the teacher layer at the same position."""
    weight: float = 250.0
    """Weight of the attention term: the value of ZSKT's code. That code divides the KL by the number of classes, so
    that attention has that much more weight there."""
    temperature: float = 1.0
    """tau of the KL; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        require(0 <= self.weight < math.inf, "attention weight", self.weight, ">= 0, and finite")
        require(bool(self.teacher_layers), "attention teacher_layers", self.teacher_layers, NAMES)
        found, wanted = len(self.student_layers), len(self.teacher_layers)
        require(
            found == wanted, "number of attention student_layers", found, f"{wanted}, one for each of teacher_layers"
        )

    @property
    def layer_pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer), pair by pair."""
        return tuple(zip(self.student_layers, self.teacher_layers, strict=True))

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError`, which lists the layers with maps, for a name without a map in either network."""
        sides = {"teacher_layers": teacher.network, "student_layers": student}
        for field, network in sides.items():
            there = spatial_layers(network, teacher.image_shape)
            for name in getattr(self, field):
                require(name in there, f"attention {field}", name, ", ".join(there))

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses; both outputs must contain the taps of `layer_pairs`."""
        loss = per_image(softened(student.logits, teacher.logits, self.temperature), labels)
        for student_tap, teacher_tap in zip(student.taps, teacher.taps, strict=True):
            loss = loss + self.weight * distance(student_tap, teacher_tap)
        return loss


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two layers' attention: (B, C, H, W) of each, C may differ, to (B,)."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return (attention(student, size) - attention(teacher, size)).square().mean(1)


def attention(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the attention map of a layer: (B, C, H, W) to unit vectors (B, positions), over a grid of `size`."""
    energy = F.adaptive_avg_pool2d(activations.float().square().mean(1), size)
    return F.normalize(energy.flatten(1), dim=1)


AnyKdLoss = Hinton | LogitL1 | SoftCrossEntropy | Dkd | Attention
KD_LOSSES = Family("kd_loss", KdLoss, get_args(AnyKdLoss))
