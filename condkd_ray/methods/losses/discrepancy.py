"""Distances between two labelled sets of features, per class or as a whole: MMD, moments, Frechet distance.

The distances are computed in full precision under autocast too, since differences of bfloat16 products would be lost in
rounding. Letters: N, M images, D features, K classes. Class-wise MMD is used by PGDI; the rest is our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BANDWIDTHS = (0.5, 1.0, 2.0)
"""Kernel scales in units of the median distance."""


def class_mmd(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int, median: Tensor
) -> Tensor:
    """Return the biased squared MMD, a scalar, averaged over common classes, of (N, D), (N,) and (M, D), (M,)."""
    with torch.autocast(left.device.type, enabled=False):
        left_hot, right_hot = (F.one_hot(x, num_classes).to(left.dtype) for x in (left_labels, right_labels))
        present = (left_hot.sum(0) > 0) & (right_hot.sum(0) > 0)
        a = left_hot / left_hot.sum(0).clamp_min(1) * present
        b = right_hot / right_hot.sum(0).clamp_min(1) * present
        return _mmd(left, a, right, b, median) / present.sum().clamp_min(1)


def marginal_mmd(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int, median: Tensor
) -> Tensor:
    """Return the biased squared MMD of both whole sides, weighted to the left side's shares of the common classes."""
    with torch.autocast(left.device.type, enabled=False):
        a, b = left_proportions(left_labels, right_labels, num_classes, left.dtype)
        return _mmd(left, a[:, None], right, b[:, None], median)


def _mmd(left: Tensor, a: Tensor, right: Tensor, b: Tensor, median: Tensor) -> Tensor:
    """Return the sum over G groups of the squared MMD of features (N, D), (M, D), with shares a (N, G), b (M, G)."""

    def mean_kernel(x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        squared = squared_distances(x, y)
        kernel = torch.stack([torch.exp(-squared / (scale * median)) for scale in BANDWIDTHS]).sum(0)
        return (u * (kernel @ v)).sum()

    return mean_kernel(left, a, left, a) + mean_kernel(right, b, right, b) - 2 * mean_kernel(left, a, right, b)


def left_proportions(
    left_labels: Tensor, right_labels: Tensor, num_classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return weights (N,), (M,), each of sum 1, that give both sides the left side's shares of the common classes."""
    left_counts, right_counts = (F.one_hot(x, num_classes).sum(0) for x in (left_labels, right_labels))
    common = (left_counts * (right_counts > 0)).to(dtype)
    shares = common / common.sum().clamp_min(1)
    return (shares / left_counts.clamp_min(1))[left_labels], (shares / right_counts.clamp_min(1))[right_labels]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (N, M) of rows (N, D), (M, D), by the product formula: its gradient is finite at 0."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)


def median_distance(features: Tensor) -> Tensor:
    """Return the median squared distance among the (N, D) features, N >= 2: the bandwidth of `class_mmd`."""
    pairs = torch.triu_indices(len(features), len(features), offset=1, device=features.device)
    return squared_distances(features, features)[pairs[0], pairs[1]].median()


def class_moments(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return squared distances of class means, and of biased covariances (Frobenius), averaged over common classes.

    The covariances are never formed: tr(S T) of two of them is a weighted sum of squared inner products.
    """
    with torch.autocast(left.device.type, enabled=False):
        sides = [_centred(x, y, num_classes) for x, y in ((left, left_labels), (right, right_labels))]
        return _moment_distances(*sides)


def marginal_moments(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return distances as `class_moments` does, of whole sides, in the left side's shares of the common classes."""
    with torch.autocast(left.device.type, enabled=False):
        shares = left_proportions(left_labels, right_labels, num_classes, left.dtype)
        sides = []
        for features, share in zip((left, right), shares, strict=True):
            mean = share[None] @ features
            sides.append((mean, features - mean, share, torch.ones_like(share)[:, None]))
        return _moment_distances(*sides)


Centred = tuple[Tensor, Tensor, Tensor, Tensor]
"""Means of G groups (G, D), features minus their group's mean (N, D), each feature's share of its group (N,), one-hot
(N, G)."""


def _moment_distances(left: Centred, right: Centred) -> tuple[Tensor, Tensor]:
    """Return the distances of `class_moments`, averaged over common groups."""
    (mean, rest, share, hot), (mean_, rest_, share_, hot_) = left, right
    present = (hot.sum(0) > 0) & (hot_.sum(0) > 0)
    count = present.sum().clamp_min(1)

    def product(x: Tensor, u: Tensor, a: Tensor, y: Tensor, v: Tensor, b: Tensor) -> Tensor:
        """Return the sum over common groups of tr(S T), where S is the covariance of x and T of y."""
        return ((a * present) @ b.T * (u[:, None] * v) * (x @ y.T).square()).sum()

    mean_distance = ((mean - mean_).square().sum(1) * present).sum()
    own = product(rest, share, hot, rest, share, hot) + product(rest_, share_, hot_, rest_, share_, hot_)
    return mean_distance / count, (own - 2 * product(rest, share, hot, rest_, share_, hot_)) / count


def _centred(features: Tensor, labels: Tensor, num_classes: int) -> Centred:
    """Return the features centred in their classes."""
    hot = F.one_hot(labels, num_classes).to(features.dtype)
    counts = hot.sum(0).clamp_min(1)
    means = hot.T @ features / counts[:, None]
    return means, features - means[labels], 1 / counts[labels], hot


def class_frechet(
    left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, *, num_classes: int
) -> Tensor:
    """Return the squared Frechet distance between Gaussians with the features' moments, averaged over common classes.

    This distance is the squared distance of means, plus tr S + tr T - 2 tr (S T)^(1/2) of the biased covariances S and
    T. It is biased upwards for few images, more than MMD: compare only sets of equal size. For reports: the function
    loops over classes and is not meant for gradients.
    """
    with torch.autocast(left.device.type, enabled=False):
        sides = (by_class(left, left_labels, num_classes), by_class(right, right_labels, num_classes))
        found = [_frechet(x, y) for x, y in zip(*sides, strict=True) if len(x) and len(y)]
        return torch.stack(found).mean() if found else left.new_zeros(())


def _frechet(x: Tensor, y: Tensor) -> Tensor:
    means, (u, v) = (x.mean(0), y.mean(0)), (x - x.mean(0), y - y.mean(0))
    # The trace of the square root is the nuclear norm of the product of the centred rows, which needs no (D, D) matrix.
    cross = torch.linalg.svdvals(u @ v.T).sum() / (len(x) * len(y)) ** 0.5
    spread = u.square().sum() / len(x) + v.square().sum() / len(y)
    return (means[0] - means[1]).square().sum() + (spread - 2 * cross).clamp_min(0)


def by_class(features: Tensor, labels: Tensor, num_classes: int) -> list[Tensor]:
    """Return the rows of `features` of each class, in their order, as K tensors; waits once for the device."""
    order = labels.argsort(stable=True)
    return list(features[order].split(labels.bincount(minlength=num_classes).tolist()))
