"""How well a teacher's answers fit the labels of images, and whether another order of the classes would fit better.

Every class counts the same, so that one with most of the images does not decide. All of it is our choice.
Letters: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.losses.discrepancy import by_class

Verdict = Literal["known", "doubtful", "unknown"]

TIMES_CHANCE = 2.5
FEW = 10
"""Classes with fewer of which a teacher that is better than chance is never held for one that knows nothing."""
NORMAL = 1.96
"""Quantile of the 95 % interval."""
SURE = 1e-3
"""Largest one-sided p of a sign test with which another order is held for the true one."""
GAINED = 0.25
"""Least gain of another order: mean share of the images of a class that changes places. A weak teacher that confuses
two classes gains less."""
MOST_EACH, MOST = 100, 2000
"""Images of a class, and of all, that a teacher is asked for at most: its accuracy is then known to 2 or 3 points."""
BATCH = 500
"""Images a network is shown at once."""


@dataclass(frozen=True)
class Recognition:
    """How a teacher's answers fit the labels of N images."""

    share: float
    """Balanced accuracy: the share of its images named right, mean over the classes that have images."""
    low: float
    high: float
    """Ends of its 95 % interval: Wilson's, for as many images as give that mean its binomial variance."""
    num_classes: int
    """That have images."""
    order: tuple[int, ...] | None = None
    """Another order of the K classes, where one fits better for certain: label of the images named k, at place k."""
    ordered: float = 0.0
    """Balanced accuracy in that order."""

    @property
    def least(self) -> float:
        """See `least_recognised`."""
        return least_recognised(self.num_classes)

    @property
    def verdict(self) -> Verdict:
        """`unknown`: less than `least` for certain. `known`: more than it, and more than chance for certain.

        Of fewer than `FEW` classes `least` is so much that an honest weak teacher may not reach it: it is `unknown`
        only where it is not better than chance for certain, too.

        Ten images of ten classes are no evidence that a teacher who names two of them right does not know them.
        """
        if self.high < self.least and not (self.num_classes < FEW and self.beats_chance):
            return "unknown"
        return "known" if self.share > self.least and self.beats_chance else "doubtful"

    @property
    def beats_chance(self) -> bool:
        """Whether it is better than chance for certain."""
        return self.low > 1 / self.num_classes


def least_recognised(num_classes: int) -> float:
    """With less a teacher hardly knows images: 2.5 times chance, or half way from chance to 1 if less (few classes)."""
    chance = 1 / num_classes
    return min(TIMES_CHANCE * chance, (1 + chance) / 2)


def max_images_per_class(num_classes: int, most: int = MOST) -> int:
    """How many images of each class a teacher is asked for, of all no more than `most`, but for one a class."""
    return max(1, min(MOST_EACH, min(MOST, most) // num_classes))


def choose(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """Rows of `per_class` random images of each class, or of all where it has fewer, by class; `labels` (N,)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    num_classes = int(labels.max()) + 1 if len(labels) else 1
    return torch.cat([rows[:per_class] for rows in by_class(order, labels[order], num_classes)])


@torch.no_grad()
def predicted_classes(
    network: nn.Module,
    images: RealImages,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """(N,) classes that `network` names, on `device`, where the images go as uint8 if they are not there.

    `mean`, `std`: of its normalisation, a channel, in units of [0, 1] pixels. It is left in eval mode.
    """
    network.eval()
    parts = (images[slice(a, a + BATCH)].to(device) for a in range(0, len(images), BATCH))
    return torch.cat([network(part.samples(mean, std).images).argmax(1) for part in parts])


def recognition(answers: Tensor, labels: Tensor, num_classes: int) -> Recognition:
    """Compare answers (N,) with labels (N,), int64 on the CPU, each of 0 to K - 1; one image or more."""
    counts = labels.bincount(minlength=num_classes).double()
    there = counts > 0
    rates = _rates(answers, labels, num_classes)
    share, present = rates.diagonal()[there].mean().item(), int(there.sum())
    low, high = _wilson(share, present**2 / counts[there].reciprocal().sum().item())
    order = _other_order(answers, labels, num_classes)
    ordered = 0.0 if order is None else rates[torch.arange(num_classes), order][there[order]].mean().item()
    return Recognition(share, low, high, present, None if order is None else tuple(order.tolist()), ordered)


def sign_test(won: int, lost: int, *, among: int = 1) -> bool:
    """Whether one of two ways to name the same images is better for certain: an exact sign test.

    `won` images are named right by it alone, `lost` by the other alone. `among`: ways that it is the best of, each of
    which could have won by chance (Bonferroni).
    """
    from scipy.stats import binom  # not at the top, as every command would wait for it

    return won > 0 and bool(binom.sf(won - 1, won + lost, 0.5) * among <= SURE)


def confusion_cycles(answers: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """Cycles of classes of which each has more images named as the next than as any other, the last as the first.

    Classes that have changed places look so; of few images, or with a teacher that confuses them, others may.
    """
    rates = _rates(answers, labels, num_classes)
    most, named = rates.max(0)
    named = torch.where(most > rates.diagonal(), named, torch.arange(num_classes)).tolist()
    cycles, seen = [], set()
    for first in range(num_classes):
        walk = [first]
        while (after := named[walk[-1]]) not in walk:
            walk.append(after)
        cycle = walk[walk.index(after) :]
        if len(cycle) > 1 and not seen & set(cycle):
            cycles.append(cycle)
        seen |= set(walk)
    return cycles


def _rates(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) float64: of the images of a label, a column, the share that is named as each class, a row."""
    pairs = (answers * num_classes + labels).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    return pairs.double() / pairs.sum(0).clamp(min=1)


def _wilson(share: float, images: float) -> tuple[float, float]:
    """Wilson's interval of a share of so many images."""
    spread = NORMAL**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * (share * (1 - share) / images + spread / (4 * images)) ** 0.5
    return middle - half, middle + half


def _other_order(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor | None:
    """(K,) the order that fits better for certain, whole or in those cycles that do; None where there is none.

    It is found on one half of the images and judged on the other, and the other way round: on the images that it was
    found on, the best of all K! orders always fits.
    """
    half = _halves(labels, num_classes)
    parts = [(answers[half == side], labels[half == side]) for side in (0, 1)]
    if not all(len(labels) for _, labels in parts):
        return None
    found = [_best(*part, num_classes) for part in parts]
    tried = [(order, *part) for order, part in zip(found, reversed(parts), strict=True)]
    if _surely(tried, torch.ones(num_classes, dtype=torch.bool)):
        return _best(answers, labels, num_classes)
    order = torch.arange(num_classes)
    for cycle in _cycles(found[0]):
        if torch.equal(found[0][cycle], found[1][cycle]) and _surely(tried, _mask(cycle, num_classes)):
            order[cycle] = found[0][cycle]
    return None if torch.equal(order, torch.arange(num_classes)) else order


def _halves(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) 0 or 1: the images of each class in turn."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=num_classes)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return torch.empty_like(labels).index_copy_(0, order, place % 2)


def _best(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K,) the order with the highest balanced accuracy; of equals the one that moves the fewest classes."""
    from scipy.optimize import linear_sum_assignment  # not at the top, as every command would wait for it

    rates = _rates(answers, labels, num_classes)
    _, order = linear_sum_assignment((rates + 1e-6 * torch.eye(num_classes)).numpy(), maximize=True)
    return torch.as_tensor(order)


def _cycles(order: Tensor) -> list[Tensor]:
    """The classes that change places, each list of them among themselves."""
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


def _surely(tried: list[tuple[Tensor, Tensor, Tensor]], among: Tensor) -> bool:
    """Whether orders, each with answers and labels of images it was not found on, fit better in the classes `among`.

    By an exact sign test over the images that just one of the two orders names right, and by `GAINED`.
    """
    won, lost, gains = 0, 0, []
    for order, answers, labels in tried:
        count = len(order)
        moved = (order != torch.arange(count)) & among
        rows = moved[labels]
        answers, labels = answers[rows], labels[rows]
        other, given = order[answers] == labels, answers == labels
        won, lost = won + int((other & ~given).sum()), lost + int((given & ~other).sum())
        there = labels.bincount(minlength=count) > 0
        net = torch.zeros(count, dtype=torch.float64).index_add_(0, labels, other.double() - given.double())
        gains.append((net / labels.bincount(minlength=count).clamp(min=1))[there])
    gained = torch.cat(gains)
    return bool(len(gained)) and bool(gained.mean() >= GAINED) and sign_test(won, lost)
