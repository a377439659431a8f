"""Targets of a round's images: one class per image, or a whole output distribution of the teacher.

Soft targets from a layer of the teacher: Z. Wang, AAAI 2021, arXiv 2104.04868, "Data-free knowledge distillation with
soft targeted transfer set synthesis"; the images are made by `inversion/soft_target.py`. The authors released no code:
the formulas follow published summaries of the paper and a public re-implementation, without its errors (it swaps the
arguments of the KL and draws new targets in every step).

Letters: B batch, K classes, d units of the layer, k incoming weights of each unit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.families import Family
from condkd_ray.core.method import Method, require
from condkd_ray.core.rng import Streams
from condkd_ray.models.observation import PENULTIMATE
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True)
class Targets:
    """Targets of a round's images: `labels` (B,) int64, and optionally soft targets.

    `soft` (B, K): the target distributions, probabilities at `temperature`; `labels` are then their largest classes.
    """

    labels: Tensor
    soft: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cross_entropy_target(self) -> Tensor:
        """Target of the cross-entropy at `temperature`: the soft targets if there are any, else the labels."""
        return self.labels if self.soft is None else self.soft


@dataclass(frozen=True, kw_only=True)
class TargetSource(Method, ABC):
    """Contract of the target sources."""

    soft: ClassVar[bool] = False
    """True if the targets are soft; only inversions whose `uses_targets` is `soft` accept soft targets."""

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` if the teacher lacks what the targets are computed from."""

    @abstractmethod
    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Return targets of `count` images, on the teacher's device, from stream `targets`."""


@dataclass(frozen=True, kw_only=True)
class Balanced(TargetSource):
    """Each class floor(n / K) or ceil(n / K) times, in random order; which classes get one more is random too.

    Our choice: as published, CMI and Fast draw labels independently, and NAYER draws balanced ones. Balanced labels
    have less variance.
    """

    name: Literal["balanced"] = "balanced"

    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Return `count` labels."""
        return Targets(balanced_labels(count, teacher.num_classes, rng))


def balanced_labels(count: int, num_classes: int, rng: Streams) -> Tensor:
    """Return labels (count,) int64 from stream `targets`: each class floor(count / K) or ceil(count / K) times."""
    generator = rng["targets"]
    classes = torch.randperm(num_classes, generator=generator, device=rng.device)
    labels = classes.repeat(-(-count // num_classes))[:count]
    return labels[torch.randperm(count, generator=generator, device=rng.device)]


@dataclass(frozen=True, kw_only=True)
class Soft(TargetSource):
    """The teacher's outputs for layer values v ~ N(mean, sigma^2 R): softmax(rest(v) / temperature).

    `rest` is the part of the teacher after the layer. R_ij is the cosine between the incoming weights of units i and j.
    A unit without incoming weights has the value `mean`. All classes share one distribution: the labels, which are each
    target's largest class, are as unbalanced as the teacher's outputs, and the paper does not balance them. Of 10 000
    targets for digits each class had 2 to 15 % (lenet5) and 4 to 14 % (resnet-8-16), almost independently of `sigma`.

    For a linear layer, v are its values before the activation, and the network applies what follows. ResNets have no
    linear layer but the last: a convolution whose channels are the features may be named instead. Then k counts all
    weights of a kernel, v is the pooled vector, and a ReLU follows it.
    """

    paper = "Z. Wang, AAAI 2021"
    ours = ("layer", "activate")
    name: Literal["soft"] = "soft"
    soft = True
    layer: str | None = None
    """A linear layer or convolution of the teacher. None: the last linear layer before the one that computes the logits
    ("FC-2" in the paper); without one, the last convolution larger than 1x1 whose channels are the features."""
    sigma: float = 2.0
    """Scale of the values (the paper: 1.5 for MNIST, 2.0 for CIFAR-10)."""
    sigma_is_variance: bool = True
    """If true, the standard deviation is the square root of `sigma`, else `sigma` itself."""
    mean: float = 0.0
    """Mean of the layer values v."""
    activate: bool = True
    """If true, the activation is applied to v. Otherwise v enters the last linear layer directly."""
    temperature: float = 20.0
    """Temperature of the softmax of the teacher's outputs."""

    def __post_init__(self) -> None:
        require(self.sigma > 0, "soft targets' sigma", self.sigma, "> 0")
        require(self.temperature > 0, "soft targets' temperature", self.temperature, "> 0")

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError`, which lists the usable layers, if `layer` is unusable or there is none."""
        name = self._layer_name(teacher)
        fault = self._fault(name, teacher)
        if fault:
            usable = [other for other in teacher.weighted if not self._fault(other, teacher)]
            accepted = ", ".join(usable) or "none of this teacher (lenet5 has one)"
            require(False, f"layer of the soft targets ({fault})", name, f"{accepted}; or targets balanced")

    @torch.no_grad()
    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Return `count` soft targets; the labels are their largest classes."""
        name = self._layer_name(teacher)
        assert name is not None
        layer = teacher.weighted[name]
        std = self.sigma**0.5 if self.sigma_is_variance else self.sigma
        values = self.mean + std * correlated(layer.weight, count, rng["targets"])
        rectify = self.activate and isinstance(layer, nn.Conv2d)
        logits = teacher.logits_from(self._input_layer(name, teacher), F.relu(values) if rectify else values)
        soft = F.softmax(logits / self.temperature, dim=1)
        return Targets(soft.argmax(1), soft, self.temperature)

    def _layer_name(self, teacher: Teacher) -> str | None:
        if self.layer is not None:
            return self.layer
        linear = [name for name, layer in teacher.weighted.items() if isinstance(layer, nn.Linear)]
        return (linear or _feature_convolutions(teacher) or [None])[-1]

    def _input_layer(self, name: str, teacher: Teacher) -> str:
        """Return the name of the layer at which v enters the network."""
        own = self.activate and isinstance(teacher.weighted[name], nn.Linear)
        return name if own else PENULTIMATE

    def _fault(self, name: str | None, teacher: Teacher) -> str:
        """Return the reason why a layer cannot be used; empty if it can be used."""
        layer = teacher.weighted.get(name) if name else None
        if name is None or layer is None:
            return "no linear layer or convolution before the one that makes the logits"
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return "a grouped convolution: its units have no weights in common"
        entry, units = self._input_layer(name, teacher), len(layer.weight)
        if entry == PENULTIMATE and units != teacher.num_features:
            return f"{units} units, but {teacher.num_features} features are needed"
        if not teacher.decides(entry, units):
            return "the logits do not depend on it, or not on it only"
        return ""


def correlated(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, d) normal vectors of mean 0 whose covariance is the cosines of the rows of `weight` (d, ...).

    They are the normalised rows times standard normal vectors of length k: exact for a singular R too, without a
    factorisation.
    """
    with torch.autocast(weight.device.type, enabled=False):
        rows = F.normalize(weight.flatten(1).float(), dim=1)
        noise = torch.randn(count, rows.shape[1], generator=generator, device=rows.device)
        return noise @ rows.T


def _feature_convolutions(teacher: Teacher) -> list[str]:
    """Return the names of convolutions whose channels are the features.

    1x1 convolutions, which are often shortcuts, are returned only if there are no others.
    """
    convolutions = {name: layer for name, layer in teacher.weighted.items() if isinstance(layer, nn.Conv2d)}
    fitting = [name for name, layer in convolutions.items() if layer.out_channels == teacher.num_features]
    return [name for name in fitting if max(convolutions[name].kernel_size) > 1] or fitting


AnyTargets = Balanced | Soft
TARGETS = Family("targets", TargetSource, get_args(AnyTargets))
