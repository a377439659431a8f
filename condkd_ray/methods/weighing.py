"""Weighing: the weight of each image in the per-sample terms of the inversion that makes it.

SSD-KD's modulating function (CVPR 2024, arXiv 2406.07876) gives rare classes and hard images more weight. According to
published summaries, phi is a diversity term, which penalises the number of samples that the teacher assigns to the same
class, times a difficulty term, which favours low confidence with an exponent gamma. There is no public code, so the
formula below and all fields but gamma are our choice.

Letters: B batch, K classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from condkd_ray.core.families import Family
from condkd_ray.core.method import Method, require
from condkd_ray.core.samples import UNLABELLED, pixel_counts
from condkd_ray.core.task import BOTH
from condkd_ray.methods.losses.kd import per_image
from condkd_ray.models.observation import Observation


class Weigh(Protocol):
    """Computes the weights of samples in the per-sample terms of an inversion, such as SSD-KD's modulating function."""

    def __call__(self, observation: Observation, labels: Tensor) -> Tensor:
        """Return (B,) weights >= 0, without gradient unless the weighing is set to pass one."""
        ...


def equal_weights(observation: Observation, labels: Tensor) -> Tensor:
    """Return weights (B,) of 1: a `Weigh`, that of all published methods except SSD-KD."""
    return torch.ones(len(labels), device=labels.device)


@dataclass(frozen=True, kw_only=True)
class Weighing(Method, ABC):
    """Contract of the weighings."""

    reads_memory: ClassVar[bool] = True
    """True if the weights depend on the content of the memory."""

    @abstractmethod
    def bind(self, class_counts: Tensor) -> Weigh:
        """Return the function that computes the weights during one round.

        `class_counts` (K,) is the memory's number of samples of each class at the start of the round, by the teacher's
        classes, in segmentation of pixels; it is on the device of the weights.
        """


@dataclass(frozen=True, kw_only=True)
class Equal(Weighing):
    """Every image has weight 1."""

    tasks = BOTH
    reads_memory = False
    name: Literal["equal"] = "equal"

    def bind(self, class_counts: Tensor) -> Weigh:
        """Return `equal_weights`."""
        return equal_weights


@dataclass(frozen=True, kw_only=True)
class Modulating(Weighing):
    """phi(x) = (1 - share of x's class among the counted samples) (1 - p(x))^gamma, with the teacher's classes.

    p(x) is the teacher's largest probability for the augmented image. Only per-sample terms are weighted; matching BN
    statistics concerns the whole batch and is not.

    In segmentation phi(x) = (1 - sum over classes c of h_c(x) s_c) m(x), our choice: h_c is the share of class c among
    the pixels of x, s_c its share among all counted pixels, and m the mean of (1 - p)^gamma over the pixels of x.
    Pixels that the augmentation moved in do not count.
    """

    tasks = BOTH
    paper = "Liu et al., CVPR 2024"
    ours = ("gamma", "counted", "share_of", "normalise", "through_confidence")
    name: Literal["modulating"] = "modulating"
    gamma: float = 2.0
    """Exponent of the difficulty term, the default of focal loss (the paper's value is not known); 0 disables the
    term."""
    counted: Literal["memory", "batch", "both"] = "both"
    """Samples, or pixels, whose classes are counted: all in the memory when the round begins, the current batch, or
    both."""
    share_of: Literal["answer", "label"] = "answer"
    """The class whose share is used: the one that the teacher predicts for x (`answer`), or the target class of x
    (`label`; pixels without one are left out). For an inversion without labels both are the same; for the others only
    `label` increases the weight of classes that are made too rarely."""
    normalise: bool = False
    """Scale the weights to mean 1 over the batch, so that the per-sample terms keep their size relative to the
    others."""
    through_confidence: bool = False
    """Let the gradient flow through p(x) too; otherwise phi is only a weight."""

    def __post_init__(self) -> None:
        require(self.gamma >= 0, "modulating gamma", self.gamma, ">= 0")

    def bind(self, class_counts: Tensor) -> Weigh:
        """Return phi as a function of the observation and the labels."""

        def weigh(observation: Observation, labels: Tensor) -> Tensor:
            logits = observation.logits if self.through_confidence else observation.logits.detach()
            predicted, inside = logits.argmax(1), observation.inside
            if inside is not None:
                predicted = predicted.where(inside != UNLABELLED, UNLABELLED)
            chosen = predicted if self.share_of == "answer" else labels
            if logits.ndim == 2:
                share = self._shares(predicted, class_counts)[chosen]
                difficulty = uncertainty(logits, self.gamma)
            else:
                counts = pixel_counts(chosen, len(class_counts))
                of_image = counts / counts.sum(1, keepdim=True).clamp_min(1)
                share = (of_image * self._shares(predicted, class_counts)).sum(1)
                difficulty = per_image(uncertainty(logits, self.gamma), inside)
            phi = (1 - share) * difficulty
            return phi / phi.detach().mean().clamp_min(torch.finfo(phi.dtype).tiny) if self.normalise else phi

        return weigh

    def _shares(self, predicted: Tensor, class_counts: Tensor) -> Tensor:
        """Return (K,) shares of the classes among the counted samples or pixels.

        `predicted` (B,) or (B, H, W): classes of the batch. All shares are 0 if nothing is counted.
        """
        counts = torch.zeros_like(class_counts)
        if self.counted != "batch":
            counts = counts + class_counts
        if self.counted != "memory":
            if predicted.ndim == 1:
                counts = counts.index_add(0, predicted, torch.ones_like(predicted))
            else:
                counts = counts + pixel_counts(predicted, len(counts)).sum(0)
        return counts / counts.sum().clamp_min(1)


def uncertainty(logits: Tensor, gamma: float) -> Tensor:
    """Return (1 - largest probability)^gamma, (B, ...), of logits (B, K, ...): exact, with a finite gradient always."""
    others = logits.float().log_softmax(1).scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    return (gamma * others.logsumexp(1)).exp()


AnyWeighing = Equal | Modulating
WEIGHINGS = Family("weighing", Weighing, get_args(AnyWeighing))
