"""Distances of synthetic images to real and to condensed images, to detect collapse onto the condensed images.

These metrics are for reports only. All but `confidence` and `gap` are computed with real train images, which no
inversion may use; so no inversion, search or scheduler reads them. All of this is our choice.

Letters: N images, K classes, M condensed images that guide ("guides"), D features of the teacher's penultimate layer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condkd_ray.core.method import Metrics, NonFiniteError
from condkd_ray.core.samples import Samples
from condkd_ray.methods.losses.discrepancy import by_class, class_frechet, class_mmd, median_distance
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.evaluation import compare

NUM_IMAGES = 256
"""Number of synthetic images measured in a round: the first ones."""
REAL_PER_CLASS, GUIDES_PER_CLASS = 50, 100
"""Numbers of real images, and of condensed images, of each class with which the synthetic images are compared."""
NEIGHBOUR = 5
"""The neighbourhood of a guide reaches to its fifth-nearest real image of the same class, or to the farthest if there
are fewer."""
CONFIDENCE_BINS = 20
"""Number of equal bins of [0, 1] in the histogram of confidences."""


@dataclass(frozen=True)
class Landmarks:
    """Teacher features of real and condensed images without augmentation; computed once and shared by all trials.

    Features (N, D) are divided by `scale`, the root mean squared norm of the real features, so that values are
    comparable between all trials of a teacher. `median` is the median squared distance between real features, the
    bandwidth of the MMD. Two values per class (K,) describe the real images and are NaN if the class has too few of
    them: `spread` is the mean distance between two real images, `nearest` the mean distance from a real image to its
    nearest guide of the class. `radii` (M,) are the neighbourhood radii of the guides, which are sorted by class. A
    real image that is itself a guide is left out of `nearest` and `radii`.
    """

    real: Tensor
    real_labels: Tensor
    scale: Tensor
    median: Tensor
    spread: Tensor
    condensed: Tensor | None = None
    condensed_labels: Tensor | None = None
    radii: Tensor | None = None
    nearest: Tensor | None = None


@torch.no_grad()
def make_landmarks(teacher: Teacher, real: Samples, condensed: Samples | None) -> Landmarks:
    """Compute landmarks from real train images and at most the first `GUIDES_PER_CLASS` condensed images per class."""
    real = real[real.labels.argsort(stable=True)].to(teacher.device)
    with torch.autocast(teacher.device.type, enabled=False):
        features = _features(teacher, real.images)
        scale = features.square().sum(1).mean().sqrt()
        features = features / scale
        spread = torch.stack([_spread(part) for part in by_class(features, real.labels, teacher.num_classes)])
        landmarks = Landmarks(features, real.labels, scale, median_distance(features), spread)
        return landmarks if condensed is None else _with_guides(landmarks, teacher, real, condensed.to(teacher.device))


def _with_guides(landmarks: Landmarks, teacher: Teacher, real: Samples, condensed: Samples) -> Landmarks:
    rows = torch.arange(len(condensed), device=teacher.device)
    parts = [part[:GUIDES_PER_CLASS] for part in by_class(rows, condensed.labels, teacher.num_classes)]
    guides = condensed[torch.cat(parts)]
    features = _features(teacher, guides.images) / landmarks.scale
    radii, nearest = [], []
    for k in range(teacher.num_classes):
        ours, theirs = real.labels == k, guides.labels == k
        same = (_distances(real.images[ours].flatten(1), guides.images[theirs].flatten(1)) == 0).any(1)
        apart = _distances(landmarks.real[ours][~same], features[theirs])
        nearest.append(_nearest(apart))
        reach = min(NEIGHBOUR, len(apart))
        radii.append(apart.kthvalue(reach, 0).values if reach else features.new_full((int(theirs.sum()),), torch.nan))
    found = vars(landmarks) | {"condensed": features, "condensed_labels": guides.labels}
    return Landmarks(**found | {"radii": torch.cat(radii), "nearest": torch.stack(nearest)})


@torch.no_grad()
def diagnose(fresh: Samples, landmarks: Landmarks, *, teacher: Teacher, student: nn.Module) -> Metrics:
    """Return the metrics `diagnosis/*` of a round's first `NUM_IMAGES` synthetic images; undefined ones are left out.

    `mmd_real`, `frechet_real`, `mmd_condensed`, `frechet_condensed`: class-wise distance to the real or condensed
    images, averaged over the classes that both sets contain. The Frechet distance is the squared one, as in FID; of few
    images it is biased upwards, equally in all arms with equal numbers of images.
    `diversity`: mean distance between two images of a class, relative to real images (1: as spread as real, 0:
    collapsed).
    `coverage`: fraction of guides with a synthetic image of their class in their neighbourhood; guides of unknown
    neighbourhood are left out.
    `nearest_guide`: mean distance to the nearest guide of the class, relative to real images (below 1: nearer than
    real).
    `confidence`: mean of the teacher's largest probability. `gap`: mean KL(teacher || student); the student is set to
    eval mode. Computed in float32, even under autocast. Raises `NonFiniteError` if the teacher's features are not
    finite.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        shown, classes = fresh[:NUM_IMAGES], teacher.num_classes
        seen = teacher.observe(shown.images, bn=False)
        if not seen.features.isfinite().all():
            raise NonFiniteError("the teacher's features of the synthetic images are not finite")
        features = seen.features / landmarks.scale
        parts = by_class(features, shown.labels, classes)
        labelled = Samples(shown.images, shown.labels, seen.logits)
        found = {"confidence": seen.logits.softmax(1).amax(1).mean(), "gap": compare(student.eval(), labelled)["kl"]}
        found |= _apart("real", features, shown.labels, landmarks.real, landmarks.real_labels, landmarks)
        found["diversity"] = _ratio(torch.stack([_spread(part) for part in parts]), landmarks.spread)
        if landmarks.condensed is not None:
            found |= _to_guides(features, shown.labels, parts, landmarks)
        values = torch.stack(list(found.values())).tolist()
        return {f"diagnosis/{name}": value for name, value in zip(found, values, strict=True) if math.isfinite(value)}


@torch.no_grad()
def to_real(made: Samples, landmarks: Landmarks, *, teacher: Teacher) -> Metrics:
    """Return `mmd_real` and `frechet_real`, defined as in `diagnose`, of all images of `made`.

    Raises `NonFiniteError` if the teacher's features are not finite.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        features = _features(teacher, made.images) / landmarks.scale
        if not features.isfinite().all():
            raise NonFiniteError("the teacher's features of the synthetic images are not finite")
        found = _apart("real", features, made.labels, landmarks.real, landmarks.real_labels, landmarks)
    return {name: value.item() for name, value in found.items()}


def histograms(logits: Tensor) -> dict[str, list[int]]:
    """Return histograms of teacher logits (N, K): predictions per `class`, and images per bin of `confidence`."""
    confidence, classes = logits.float().softmax(1).max(1)
    bins = (CONFIDENCE_BINS * confidence).long().clamp(max=CONFIDENCE_BINS - 1)
    return {
        "class": classes.bincount(minlength=logits.shape[1]).tolist(),
        "confidence": bins.bincount(minlength=CONFIDENCE_BINS).tolist(),
    }


def _to_guides(features: Tensor, labels: Tensor, parts: list[Tensor], landmarks: Landmarks) -> dict[str, Tensor]:
    """Return the metrics that require condensed images."""
    guides: Any = landmarks.condensed
    names: Any = landmarks.condensed_labels
    radii: Any = landmarks.radii
    theirs = by_class(guides, names, len(parts))
    apart = [_distances(ours, others) for ours, others in zip(parts, theirs, strict=True)]
    hit = [_closest(one.T) <= reach for one, reach in zip(apart, by_class(radii, names, len(parts)), strict=True)]
    known = radii.isfinite()
    found = _apart("condensed", features, labels, guides, names, landmarks)
    found["coverage"] = (torch.cat(hit) & known).float().sum() / known.sum()
    found["nearest_guide"] = _ratio(torch.stack([_nearest(one) for one in apart]), landmarks.nearest)
    return found


def _apart(
    name: str, left: Tensor, left_labels: Tensor, right: Tensor, right_labels: Tensor, landmarks: Landmarks
) -> dict[str, Tensor]:
    """Return MMD and Frechet distance between two labelled feature sets; empty if they have no class in common."""
    classes = len(landmarks.spread)
    sides = (by_class(left, left_labels, classes), by_class(right, right_labels, classes))
    mmds = [_mmd(x, y, landmarks.median) for x, y in zip(*sides, strict=True) if len(x) and len(y)]
    if not mmds:
        return {}
    frechet = class_frechet(left, left_labels, right, right_labels, num_classes=classes)
    return {f"mmd_{name}": torch.stack(mmds).mean(), f"frechet_{name}": frechet}


def _mmd(x: Tensor, y: Tensor, median: Tensor) -> Tensor:
    """Return the MMD of one class. The kernels of a hundred classes at once would take gigabytes."""
    zeros = (torch.zeros(len(part), dtype=torch.long, device=part.device) for part in (x, y))
    return class_mmd(x, next(zeros), y, next(zeros), num_classes=1, median=median)


def _features(teacher: Teacher, images: Tensor) -> Tensor:
    return torch.cat([teacher.observe(part, bn=False).features for part in images.split(512)])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the distances (N, M) between rows (N, D) and (M, D); exact near 0, unlike the product formula."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _spread(features: Tensor) -> Tensor:
    """Return the mean distance between two different rows; NaN if there are fewer than two."""
    pairs = len(features) * (len(features) - 1)
    return _distances(features, features).sum() / pairs if pairs else features.new_tensor(torch.nan)


def _closest(distances: Tensor) -> Tensor:
    """Return the minimum of each row; infinity for empty rows."""
    return distances.amin(1) if distances.shape[1] else distances.new_full((len(distances),), torch.inf)


def _nearest(distances: Tensor) -> Tensor:
    """Return the mean over rows of each row's minimum; NaN if there is no row or no column."""
    return distances.amin(1).mean() if distances.numel() else distances.new_tensor(torch.nan)


def _ratio(ours: Tensor, real: Tensor | None) -> Tensor:
    """Return the ratio of the means over those classes (K,) in which both are finite; NaN if there are none."""
    assert real is not None
    known = ours.isfinite() & real.isfinite()
    return ours[known].mean() / real[known].mean()
