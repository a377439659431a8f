"""Agreement of a teacher's predictions with the labels of images, and whether another class order fits better.

All classes have the same weight, so that a class with most of the images or pixels does not decide. All of it is our
choice.
Letters: N images, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.losses.discrepancy import by_class
from condkd_ray.methods.scores import mean_iou

Verdict = Literal["known", "doubtful", "unknown"]

TIMES_CHANCE = 2.5
FEW = 10
"""Number of classes below which a teacher better than chance is never considered `unknown`."""
QUANTILE = 1.96
"""Normal quantile of the 95 % interval."""
SIGNIFICANT = 1e-3
"""Largest one-sided p of a sign test with which another order is considered the true one."""
GAINED = 0.25
"""Least gain of another order: mean share of a moved class's images that become correct. A weak teacher that confuses
two classes gains less."""
MAX_PER_CLASS, MAX_TOTAL = 100, 2000
"""Limits of the images per class, and in all, that a teacher classifies: its accuracy is then known to 2 or 3
points if there are ten classes or more."""
BATCH = 500
"""Images per forward pass."""


@dataclass(frozen=True)
class Recognition:
    """Agreement of a teacher's predictions with the labels of N images."""

    share: float
    """Balanced accuracy: the share of correct predictions, averaged over the classes that have images."""
    low: float
    high: float
    """Ends of its 95 % interval: Wilson's, for the number of images with which one binomial share would have the
    variance of this mean."""
    num_classes: int
    """Number of classes that have images."""
    order: tuple[int, ...] | None = None
    """Another order of the K classes, if one certainly fits better: `order[k]` is the label of the images predicted as
    k."""
    ordered: float = 0.0
    """Balanced accuracy in that order."""

    @property
    def least(self) -> float:
        """Accuracy below which the images count as unknown: see `least_recognised`."""
        return least_recognised(self.num_classes)

    @property
    def verdict(self) -> Verdict:
        """Verdict: `unknown` if `share` is certainly below `least`, `known` if above it and certainly above chance.

        Otherwise it is `doubtful`. With fewer than `FEW` classes, `least` is so high that a valid weak teacher may not
        reach it: the verdict is then `unknown` only if the accuracy is not certainly above chance either.

        For example, ten images of ten classes are too few to reject a teacher with two correct predictions.
        """
        if self.high < self.least and not (self.num_classes < FEW and self.beats_chance):
            return "unknown"
        return "known" if self.share > self.least and self.beats_chance else "doubtful"

    @property
    def beats_chance(self) -> bool:
        """True if the accuracy is certainly above chance."""
        return self.low > 1 / self.num_classes


def least_recognised(num_classes: int) -> float:
    """Return the accuracy below which images count as unknown: 2.5 times chance, or half way from chance to 1 if less.

    The second value is the smaller one for few classes.
    """
    chance = 1 / num_classes
    return min(TIMES_CHANCE * chance, (1 + chance) / 2)


def max_images_per_class(num_classes: int, most: int = MAX_TOTAL) -> int:
    """Return the number of images per class that a teacher classifies, at least 1.

    At most `MAX_PER_CLASS`, and at most `most` and `MAX_TOTAL` in all.
    """
    return max(1, min(MAX_PER_CLASS, min(MAX_TOTAL, most) // num_classes))


def choose(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """Return rows of `per_class` random images of each class (all if it has fewer), class by class; `labels` (N,)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    num_classes = int(labels.max()) + 1 if len(labels) else 1
    return torch.cat([rows[:per_class] for rows in by_class(order, labels[order], num_classes)])


def some(images: RealImages, pixels: int, *, seed: int) -> RealImages:
    """Return random images with at most this number of `pixels` in all, but at least one image."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[: max(1, pixels // math.prod(images.pixels.shape[2:]))]]


def best_order(counts: Tensor) -> tuple[tuple[int, ...], float]:
    """Return the order of the classes with the highest mean IoU, and that mean IoU, from `scores.confusion` (K, K).

    `order[k]` is the label of the pixels predicted as k. Classes without any pixel are left out of the mean.
    """
    from scipy.optimize import linear_sum_assignment  # imported here, because every command would wait for it

    counts = counts.double()
    either = counts.sum(1, keepdim=True) + counts.sum(0) - counts
    labels, predicted = linear_sum_assignment((counts / either.clamp(min=1)).numpy(), maximize=True)
    order = torch.as_tensor(labels)[torch.as_tensor(predicted).argsort()]
    return tuple(order.tolist()), mean_iou(torch.zeros_like(counts).index_add_(1, order, counts)).item()


@torch.no_grad()
def predicted_classes(
    network: nn.Module,
    images: RealImages,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return (N,) classes predicted by `network` on `device`; the images are moved there as uint8.

    `mean`, `std`: of the normalisation, per channel, in units of [0, 1] pixels. The network is left in eval mode.
    """
    network.eval()
    parts = (images[slice(a, a + BATCH)].to(device) for a in range(0, len(images), BATCH))
    return torch.cat([network(part.samples(mean, std).images).argmax(1) for part in parts])


def recognition(predictions: Tensor, labels: Tensor, num_classes: int) -> Recognition:
    """Compare `predictions` (N,) with labels (N,), int64 on the CPU, each of 0 to K - 1; N >= 1."""
    counts = labels.bincount(minlength=num_classes).double()
    there = counts > 0
    rates = _rates(predictions, labels, num_classes)
    share, present = rates.diagonal()[there].mean().item(), int(there.sum())
    low, high = _wilson(share, present**2 / counts[there].reciprocal().sum().item())
    order = _other_order(predictions, labels, num_classes)
    ordered = 0.0 if order is None else rates[torch.arange(num_classes), order][there[order]].mean().item()
    return Recognition(share, low, high, present, None if order is None else tuple(order.tolist()), ordered)


def sign_test(won: int, lost: int, *, among: int = 1) -> bool:
    """Return whether the first of two classifiers of the same images is certainly better: an exact sign test.

    Of the images that exactly one classifier predicts correctly, `won` are those of the first, `lost` those of the
    second. `among`: number of candidates of which the first is the best, each of which could have won by chance
    (Bonferroni).
    """
    from scipy.stats import binom  # imported here, because every command would wait for it

    return won > 0 and bool(binom.sf(won - 1, won + lost, 0.5) * among <= SIGNIFICANT)


def confusion_cycles(predictions: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Return cycles of classes whose most frequent prediction is the next class of the cycle (the last: the first).

    Swapped labels give such cycles; with few images, or a teacher that confuses classes, others can occur.
    """
    rates = _rates(predictions, labels, num_classes)
    most, predicted = rates.max(0)
    predicted = torch.where(most > rates.diagonal(), predicted, torch.arange(num_classes)).tolist()
    cycles, seen = [], set()
    for first in range(num_classes):
        walk = [first]
        while (after := predicted[walk[-1]]) not in walk:
            walk.append(after)
        cycle = walk[walk.index(after) :]
        if len(cycle) > 1 and not seen & set(cycle):
            cycles.append(cycle)
        seen |= set(walk)
    return cycles


def _rates(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (K, K) float64: the share of a label's images (a column) that is predicted as each class (a row)."""
    pairs = (predictions * num_classes + labels).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    return pairs.double() / pairs.sum(0).clamp(min=1)


def _wilson(share: float, images: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of this number of images."""
    spread = QUANTILE**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = QUANTILE / (1 + spread) * (share * (1 - share) / images + spread / (4 * images)) ** 0.5
    return middle - half, middle + half


def _other_order(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor | None:
    """Return (K,) the order that certainly fits better, whole or in some of its cycles; None if there is none.

    It is found on one half of the images and tested on the other, and vice versa: on the images on which it was found,
    the best of all K! orders always fits.
    """
    half = _halves(labels, num_classes)
    parts = [(predictions[half == side], labels[half == side]) for side in (0, 1)]
    if not all(len(labels) for _, labels in parts):
        return None
    found = [_best(*part, num_classes) for part in parts]
    tried = [(order, *part) for order, part in zip(found, reversed(parts), strict=True)]
    if _certainly_better(tried, torch.ones(num_classes, dtype=torch.bool)):
        return _best(predictions, labels, num_classes)
    order = torch.arange(num_classes)
    for cycle in _cycles(found[0]):
        if torch.equal(found[0][cycle], found[1][cycle]) and _certainly_better(tried, _mask(cycle, num_classes)):
            order[cycle] = found[0][cycle]
    return None if torch.equal(order, torch.arange(num_classes)) else order


def _halves(labels: Tensor, num_classes: int) -> Tensor:
    """Return (N,) 0 or 1: the images of each class alternate."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=num_classes)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return torch.empty_like(labels).index_copy_(0, order, rank % 2)


def _best(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (K,) the order with the highest balanced accuracy; among equals the one that moves the fewest classes."""
    from scipy.optimize import linear_sum_assignment  # imported here, because every command would wait for it

    rates = _rates(predictions, labels, num_classes)
    _, order = linear_sum_assignment((rates + 1e-6 * torch.eye(num_classes)).numpy(), maximize=True)
    return torch.as_tensor(order)


def _cycles(order: Tensor) -> list[Tensor]:
    """Return the classes that change places, one list per cycle."""
    cycles, left = [], {k for k, label in enumerate(order.tolist()) if label != k}
    while left:
        cycle = [left.pop()]
        while (after := int(order[cycle[-1]])) in left:
            left.remove(after)
            cycle.append(after)
        cycles.append(torch.tensor(cycle))
    return cycles


def _mask(rows: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).index_fill(0, rows, True)


def _certainly_better(tried: list[tuple[Tensor, Tensor, Tensor]], among: Tensor) -> bool:
    """Return whether orders fit better in the classes `among`, by an exact sign test and by `GAINED`.

    `tried`: each order, with the predictions and labels of the other half of the images. The test counts the images
    that exactly one of the two orders classifies correctly.
    """
    won, lost, gains = 0, 0, []
    for order, predictions, labels in tried:
        count = len(order)
        moved = (order != torch.arange(count)) & among
        rows = moved[labels]
        predictions, labels = predictions[rows], labels[rows]
        other, given = order[predictions] == labels, predictions == labels
        won, lost = won + int((other & ~given).sum()), lost + int((given & ~other).sum())
        there = labels.bincount(minlength=count) > 0
        net = torch.zeros(count, dtype=torch.float64).index_add_(0, labels, other.double() - given.double())
        gains.append((net / labels.bincount(minlength=count).clamp(min=1))[there])
    gained = torch.cat(gains)
    return bool(len(gained)) and bool(gained.mean() >= GAINED) and sign_test(won, lost)
