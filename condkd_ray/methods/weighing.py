r"""Weighing: how much each image counts in the per-sample terms of the inversion that makes it.

SSD-KD's modulating function (CVPR 2024, arXiv 2406.07876): rare classes and hard images count more. Read (`methods.md`
4.3): phi is a diversity term times a difficulty term; the first penalises how many samples the teacher puts into the
same class, the second favours low confidence with the exponent gamma. No code is public and the formula below is
recalled, not read: it is our choice, as are all fields but gamma.

Letters: B batch, K classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from condkd_ray.core.families import Family
from condkd_ray.core.method import Method, require
from condkd_ray.models.observation import Observation


class Weigh(Protocol):
    """Weights of the samples in the per-sample terms of an inversion (SSD-KD's modulating function is one)."""

    def __call__(self, seen: Observation, labels: Tensor) -> Tensor:
        """(B,) weights >= 0, without gradient unless the weighing has been told to let one through."""
        ...


def equal_weights(seen: Observation, labels: Tensor) -> Tensor:
    """Every sample counts the same: the `Weigh` of all methods but SSD-KD."""
    return torch.ones(len(labels), device=labels.device)


@dataclass(frozen=True, kw_only=True)
class Weighing(Method, ABC):
    """Contract of the family."""

    reads_memory: ClassVar[bool] = True
    """Whether weights depend on what the memory holds."""

    @abstractmethod
    def bind(self, class_counts: Tensor) -> Weigh:
        """The weights of one round, given how many samples of each class (K,) the memory holds at its start.

        The class of what is held is the teacher's, on the device the weights are wanted on.
        """


@dataclass(frozen=True, kw_only=True)
class Equal(Weighing):
    """Every image counts the same."""

    reads_memory = False
    name: Literal["equal"] = "equal"

    def bind(self, class_counts: Tensor) -> Weigh:
        """Ones."""
        return equal_weights


@dataclass(frozen=True, kw_only=True)
class Modulating(Weighing):
    """phi(x) = (1 - share of x's class among the counted) (1 - p(x))^gamma, where all classes are the teacher's.

    p(x) is its largest probability, for the image as it saw it. Only per-sample terms are weighed; a match of BN
    statistics is of the whole batch and stays as it is.
    """

    paper = "Liu et al., CVPR 2024"
    ours = ("gamma", "counted", "share_of", "normalise", "through_confidence")
    name: Literal["modulating"] = "modulating"
    gamma: float = 2.0
    """Exponent of the difficulty term, focal loss's default (the paper's value is not known); 0 leaves it out."""
    counted: Literal["memory", "batch", "both"] = "both"
    """Whose classes are counted: of all the memory holds when the round begins, of the batch in the making, or both."""
    share_of: Literal["answer", "label"] = "answer"
    """The class whose share it is: the one the teacher puts x into, or the one wanted of x. Unconditional inversions
    want what the teacher says; for the others only the latter pushes harder at classes that are made too seldom."""
    normalise: bool = False
    """Scale to mean 1 over the batch, so that the per-sample terms keep their size beside the others."""
    through_confidence: bool = False
    """Let the gradient flow through p(x) as well; otherwise phi only weighs."""

    def __post_init__(self) -> None:
        require(self.gamma >= 0, "modulating gamma", self.gamma, ">= 0")

    def bind(self, class_counts: Tensor) -> Weigh:
        """Phi."""

        def weigh(seen: Observation, labels: Tensor) -> Tensor:
            logits = seen.logits if self.through_confidence else seen.logits.detach()
            answers = logits.argmax(1)
            share = self._shares(answers, class_counts)[answers if self.share_of == "answer" else labels]
            phi = (1 - share) * uncertainty(logits, self.gamma)
            return phi / phi.detach().mean().clamp_min(torch.finfo(phi.dtype).tiny) if self.normalise else phi

        return weigh

    def _shares(self, answers: Tensor, class_counts: Tensor) -> Tensor:
        """(K,) shares of the classes among the counted; `answers` (B,). All are 0 where nothing is counted."""
        counts = torch.zeros_like(class_counts)
        if self.counted != "batch":
            counts = counts + class_counts
        if self.counted != "memory":
            counts = counts.index_add(0, answers, torch.ones_like(answers))
        return counts / counts.sum().clamp_min(1)


def uncertainty(logits: Tensor, gamma: float) -> Tensor:
    """(1 - largest probability)^gamma of (B, K) logits, (B,); exact, and its gradient finite, however sure they are."""
    others = logits.float().log_softmax(1).scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    return (gamma * others.logsumexp(1)).exp()


AnyWeighing = Equal | Modulating
WEIGHINGS = Family("weighing", Weighing, get_args(AnyWeighing))
