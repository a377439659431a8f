"""Targets of a round's images: one class per image or pixel, or a whole output distribution of the teacher.

Soft targets from a layer of the teacher: Z. Wang, AAAI 2021, arXiv 2104.04868, "Data-free knowledge distillation with
soft targeted transfer set synthesis"; the images are made by `inversion/soft_target.py`. The authors released no code:
the formulas follow published summaries of the paper and a public re-implementation, without its errors (it swaps the
arguments of the KL and draws new targets in every step).

In segmentation a target is a layout: one class per pixel. Letters: B batch, H W height and width, K classes, d units
of the layer, k incoming weights of each unit.
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
from condkd_ray.core.samples import Samples
from condkd_ray.core.task import BOTH, is_dense
from condkd_ray.data.augment import pixels, require_shift
from condkd_ray.models.observation import PENULTIMATE
from condkd_ray.models.teacher import Teacher

CELLS = (4, 6)
"""Rows and columns of cells in balanced layouts."""


@dataclass(frozen=True)
class Targets:
    """Targets of a round's images: `labels` int64, (B,) or in segmentation (B, H, W), and optionally soft targets.

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
    """Contract of the target sources.

    A source that `needs_condensed` takes one more argument of `sample`: the condensed set `condensed`, `Samples`.
    """

    soft: ClassVar[bool] = False
    """True if the targets are soft; only inversions whose `uses_targets` is `soft` accept soft targets."""
    needs_condensed: ClassVar[bool] = False
    """True if the targets are made from the condensed set, without which a config is refused."""

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` if the teacher lacks what the targets are computed from."""

    @abstractmethod
    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Return targets of `count` images, on the teacher's device, from stream `targets`."""


@dataclass(frozen=True, kw_only=True)
class Balanced(TargetSource):
    """Each class floor(n / K) or ceil(n / K) times, in random order; which classes get one more is random too.

    Our choice: as published, CMI and Fast draw labels independently, and NAYER draws balanced ones. Balanced labels
    have less variance. In segmentation the cells of coarse random layouts are balanced, see `balanced_layouts`.
    """

    tasks = BOTH
    name: Literal["balanced"] = "balanced"

    def sample(self, count: int, teacher: Teacher, *, rng: Streams) -> Targets:
        """Return `count` labels, in segmentation layouts."""
        if is_dense(teacher.task):
            return Targets(balanced_layouts(count, teacher, rng))
        return Targets(balanced_labels(count, teacher.num_classes, rng))


@dataclass(frozen=True, kw_only=True)
class Layouts(TargetSource):
    """The labels of the condensed images, each mask as often as the others, at most one more or less, in random order.

    Each drawn mask is mirrored with probability 1/2 if a mirrored image keeps its classes, and shifted. Pixels that a
    shift brings in get the label of the nearest pixel at the edge, so that the layout has no gaps; pixels without a
    class stay without one. Our choice throughout: it asks the generator for arrangements that occur in real images.
    """

    tasks = ("segmentation",)
    ours = ("shift",)
    needs_condensed = True
    name: Literal["layouts"] = "layouts"
    shift: float = 0.125
    """Largest shift of a mask, as a share of its sides; 0 disables it."""

    def __post_init__(self) -> None:
        require_shift(self.shift, "layouts shift")

    def check(self, teacher: Teacher) -> None:
        """Raise `InputError` unless the teacher's task is segmentation."""
        require(is_dense(teacher.task), "task under targets layouts", teacher.task, "segmentation; or targets balanced")

    def sample(self, count: int, teacher: Teacher, *, rng: Streams, condensed: Samples | None = None) -> Targets:
        """Return `count` layouts (B, H, W). Raises `InputError` if there is no condensed set."""
        accepted = "a condensation; or targets balanced"
        require(condensed is not None and len(condensed) > 0, "condensed set of targets layouts", condensed, accepted)
        assert condensed is not None
        masks = condensed.labels.to(rng.device)[balanced_labels(count, len(condensed), rng)]
        return Targets(moved_layouts(masks, self.shift, flip=teacher.flip_ok, rng=rng["targets"]))


def moved_layouts(masks: Tensor, share: float, *, flip: bool, rng: torch.Generator) -> Tensor:
    """Return masks (B, H, W), each shifted by up to `share` of its sides, and mirrored with p 1/2 if `flip`.

    New pixels get the label of the nearest pixel at the edge. The number of draws does not depend on `flip`.
    """
    places = []
    for side in masks.shape[1:]:
        reach = pixels(share, side)
        moves = torch.randint(-reach, reach + 1, (len(masks), 1), generator=rng, device=masks.device)
        places.append((torch.arange(side, device=masks.device) + moves).clamp(0, side - 1))
    rows, columns = places
    mirrored = torch.rand(len(masks), 1, generator=rng, device=masks.device) < 0.5
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(len(masks), device=masks.device)
    return masks[images[:, None, None], rows[:, :, None], columns[:, None, :]]


def balanced_labels(count: int, num_classes: int, rng: Streams) -> Tensor:
    """Return labels (count,) int64 from stream `targets`: each class floor(count / K) or ceil(count / K) times."""
    generator = rng["targets"]
    classes = torch.randperm(num_classes, generator=generator, device=rng.device)
    labels = classes.repeat(-(-count // num_classes))[:count]
    return labels[torch.randperm(count, generator=generator, device=rng.device)]


def balanced_layouts(count: int, teacher: Teacher, rng: Streams) -> Tensor:
    """Return layouts (count, H, W) int64 of the teacher's image size, from stream `targets`: our choice.

    Each is a grid of `CELLS` rows and columns, fewer for smaller images, whose cells have one class each. Over all
    layouts, each class fills n / K of the n cells, rounded down or up, in random order.
    """
    height, width = teacher.image_shape[1:]
    rows, columns = min(CELLS[0], height), min(CELLS[1], width)
    cells = balanced_labels(count * rows * columns, teacher.num_classes, rng).view(count, rows, columns)
    row_of, column_of = (
        torch.arange(side, device=rng.device) * number // side for side, number in ((height, rows), (width, columns))
    )
    return cells[:, row_of[:, None], column_of]


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


AnyTargets = Balanced | Soft | Layouts
TARGETS = Family("targets", TargetSource, get_args(AnyTargets))
