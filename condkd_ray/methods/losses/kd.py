"""Distillation losses between student and teacher, one value a sample.

Letters: B batch, C channels, H W height and width, K classes. Sources: `peers.md` A.0, `methods.md` 5.4 and 6.1 (read
in the hosts' released code).

DKD's formulas are standard; alpha 1, beta 8 and tau 4 were read in the authors' released settings for CIFAR-100. Their
cross-entropy with true labels and its warm-up of epochs are left out: a synthetic image has no true label, and the
student's learning rate has a warm-up of its own (our choice).

Attention transfer stands beside Hinton's KL, as ZSKT's student learns (Micaelli and Storkey, NeurIPS 2019; `peers.md`
A.2: weight 250, temperature 1, attention as the normalised channel mean of squared activations); the maps are
Zagoruyko and Komodakis', ICLR 2017.
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
from condkd_ray.models.hooks import spatial_layers
from condkd_ray.models.teacher import Teacher

NAMES = "one or more names of layers, such as stages.0 stages.1"


class Answer(NamedTuple):
    """A network's `logits` (B, K) and, where a loss has asked for them, outputs of layers, (B, C, H, W) each."""

    logits: Tensor
    taps: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KdLoss(Method, ABC):
    """Base of the distillation losses: between two answers to the same images, one value a sample."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer), each pair to be compared; most losses look at logits alone."""
        return ()

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError` where these two networks do not have what the loss compares."""

    @abstractmethod
    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) float32 losses of answers to images of the classes `labels` (B,)."""


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)): (B, K) logits of both to (B,)."""
    log_student, log_teacher = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton's loss: tau^2 KL at temperature tau, so that its gradient keeps its size; (B, K) logits to (B,)."""
    return temperature**2 * divergence(student.float() / temperature, teacher.float() / temperature)


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of (B, K) logits: (B,)."""
    return (student.float() - teacher.float()).abs().mean(1)


@dataclass(frozen=True, kw_only=True)
class Hinton(KdLoss):
    r"""Hinton's KL: tau^2 KL(softmax(t / tau) || softmax(s / tau)). Fast and CMI use tau = 20.

    SSD-KD's mean(w / max(w) tau^2 KL) is this one under `memory: prioritized` with `divide_by: largest`: the student's
    step takes the mean of weights times losses, and those are then w / max(w) (`methods.md` 4.5).
    """

    paper = "Hinton et al., arXiv 1503.02531"
    name: Literal["hinton"] = "hinton"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return softened(student.logits, teacher.logits, self.temperature)


@dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy(KdLoss):
    r"""Cross-entropy with the teacher's answer: -tau^2 \sum_k softmax(t / tau)_k log softmax(s / tau)_k.

    As ZSKD distils its images; what Wang's are distilled by is not known, and taken to be the same (`methods.md` 5.4).
    It has Hinton's gradient and another zero: the teacher's entropy, which a student cannot lower, is in it.
    """

    paper = "Nayak et al., ICML 2019"
    name: Literal["soft_ce"] = "soft_ce"
    temperature: float = 20.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        tau = self.temperature
        wanted = F.softmax(teacher.logits.float() / tau, dim=1)
        return -(tau**2) * (wanted * F.log_softmax(student.logits.float() / tau, dim=1)).sum(1)


@dataclass(frozen=True, kw_only=True)
class LogitL1(KdLoss):
    """Mean absolute difference of the logits, as DFAD, PRE-DFKD and MB-DFKD's re-runs distil."""

    name: Literal["l1"] = "l1"

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return logit_l1(student.logits, teacher.logits)


@dataclass(frozen=True, kw_only=True)
class Dkd(KdLoss):
    r"""tau^2 (alpha TCKD + beta NCKD), both KL(teacher || student) of answers at temperature tau.

    TCKD is between the two probabilities (p_y, 1 - p_y) of the sample's label y, NCKD between the softmaxes over the
    other K - 1 classes. Hinton's KL is TCKD + (1 - p_y of the teacher) NCKD: on images the teacher is sure of, what it
    thinks of the other classes hardly counts there.
    """

    paper = "Zhao et al., CVPR 2022"
    name: Literal["dkd"] = "dkd"
    alpha: float = 1.0
    """Weight of TCKD."""
    beta: float = 8.0
    """Weight of NCKD. Also read there: 2 for resnet56 to resnet20; 0.5, at tau 1, on ImageNet."""
    temperature: float = 4.0
    """tau; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        for what in ("alpha", "beta"):
            require(getattr(self, what) >= 0, f"dkd {what}", getattr(self, what), ">= 0")

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses."""
        tau = self.temperature
        sure, others = _parts(student.logits.float() / tau, labels)
        teacher_sure, teacher_others = _parts(teacher.logits.float() / tau, labels)
        decoupled = self.alpha * divergence(sure, teacher_sure) + self.beta * divergence(others, teacher_others)
        return tau**2 * decoupled


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of "the label or not" (B, 2), and those of the other classes (B, K - 1)."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)
    # By a gather: a mask would have to be counted on the host, and -inf in the label's place gives NaN in a KL.
    others = logits.gather(1, index + (index >= labels[:, None]))
    return torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], 1), others


@dataclass(frozen=True, kw_only=True)
class Attention(KdLoss):
    r"""tau^2 KL + weight \sum_l mean((a_l(student) - a_l(teacher))^2) over pairs of layers l and the places of maps.

    a, the attention, is the mean over the channels of squared activations, flattened and scaled to length 1. Where
    the maps of a pair differ in size, each is averaged down to the smaller height and width first (our choice).
    """

    paper = "Zagoruyko and Komodakis, ICLR 2017"
    ours = ("teacher_layers", "student_layers")
    name: Literal["attention"] = "attention"
    teacher_layers: tuple[str, ...]
    """Names of the teacher's layers, shallow to deep. There is no default: networks name their stages in their ways,
    and a name that is none is refused with those there are."""
    student_layers: tuple[str, ...]
    """Names of as many of the student's, each to be like the teacher's in its place."""
    weight: float = 250.0
    """ZSKT's, whose released code divides its KL by the number of classes: there attention counts that much more."""
    temperature: float = 1.0
    """tau of the KL; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        require(0 <= self.weight < math.inf, "attention weight", self.weight, ">= 0, and finite")
        require(bool(self.teacher_layers), "attention teacher_layers", self.teacher_layers, NAMES)
        ours, wanted = len(self.student_layers), len(self.teacher_layers)
        require(ours == wanted, "number of attention student_layers", ours, f"{wanted}, one for each of teacher_layers")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer), in turn."""
        return tuple(zip(self.student_layers, self.teacher_layers, strict=True))

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError`, with the layers that have a map, for one of either network that has none."""
        sides = {"teacher_layers": teacher.network, "student_layers": student}
        for field, network in sides.items():
            there = spatial_layers(network, teacher.image_shape)
            for name in getattr(self, field):
                require(name in there, f"attention {field}", name, ", ".join(there))

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses; both answers have the taps of `pairs`."""
        loss = softened(student.logits, teacher.logits, self.temperature)
        for ours, wanted in zip(student.taps, teacher.taps, strict=True):
            loss = loss + self.weight * distance(ours, wanted)
        return loss


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two layers' attention: (B, C, H, W) of each, with channels of its own, to (B,)."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return (attention(student, size) - attention(teacher, size)).square().mean(1)


def attention(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a layer looks: (B, C, H, W) to unit vectors (B, places), over a grid of `size`."""
    energy = F.adaptive_avg_pool2d(activations.float().square().mean(1), size)
    return F.normalize(energy.flatten(1), dim=1)


AnyKdLoss = Hinton | LogitL1 | SoftCrossEntropy | Dkd | Attention
KD_LOSSES = Family("kd_loss", KdLoss, get_args(AnyKdLoss))
