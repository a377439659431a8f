"""Where the synthetic images lie: nearer the data than before, or collapsed onto the condensed images that guide them?

For the report alone. Half of the figures need real train images, which no method of a data-free world may see: nothing
that decides, neither search nor scheduler nor method, may read them. All of it is our choice.

Letters: M guides (condensed images), D features of the teacher's penultimate layer.
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
"""Synthetic images looked at in a round: its first ones."""
REAL_PER_CLASS, GUIDES_PER_CLASS = 50, 100
NEIGHBOUR = 5
"""A guide's neighbourhood reaches to that nearest real image of its class."""
CONFIDENCE_BINS = 20
"""Equal parts of [0, 1] in which confidences are counted."""


@dataclass(frozen=True)
class Landmarks:
    """Real and condensed images as the teacher sees them, bare of augmentation; made once, shared by trials.

    Features are divided by `scale`, the root of the real ones' mean squared norm, so that values compare between all
    trials of one teacher. `median`: squared distance among the real ones, the bandwidth of the MMD. Of the real images
    of each class (K,), NaN where it has too few: `spread`, mean distance of two; `nearest`, mean distance to the next
    guide of the class. `radii` (M,): how far a guide's neighbourhood reaches; guides are sorted by class. A real image
    that is itself a guide counts neither in `nearest` nor in `radii`.
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
    """Landmarks from real train images and at most the first `GUIDES_PER_CLASS` condensed ones of each class."""
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
    """Figures `diagnosis/*` of a round's first `NUM_IMAGES` synthetic images; those that have no meaning are left out.

    `mmd_real`, `frechet_real`, `mmd_condensed`, `frechet_condensed`: distance to either, class by class, mean over the
    classes both have. The Frechet distance is biased upwards for few images, equally in all arms of equal numbers.
    `diversity`: mean distance of two images of a class, in units of real images' (1: as spread as real, 0: collapsed).
    `coverage`: share of the guides with a synthetic image of their class in the neighbourhood.
    `nearest_guide`: mean distance to the next guide of the class, in units of real images' (below 1: nearer than real).
    `confidence`: mean of the teacher's largest probability. `gap`: mean KL(teacher || student), which is put in eval
    mode. In float32 even under autocast. Raises `NonFiniteError` where the teacher's features are not finite.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        shown, classes = fresh[:NUM_IMAGES], teacher.num_classes
        seen = teacher.observe(shown.images, bn=False)
        if not seen.features.isfinite().all():
            raise NonFiniteError("the teacher's features of the synthetic images are not finite")
        features = seen.features / landmarks.scale
        parts = by_class(features, shown.labels, classes)
        asked = Samples(shown.images, shown.labels, seen.logits)
        found = {"confidence": seen.logits.softmax(1).amax(1).mean(), "gap": compare(student.eval(), asked)["kl"]}
        found |= _apart("real", features, shown.labels, landmarks.real, landmarks.real_labels, landmarks)
        found["diversity"] = _ratio(torch.stack([_spread(part) for part in parts]), landmarks.spread)
        if landmarks.condensed is not None:
            found |= _to_guides(features, shown.labels, parts, landmarks)
        values = torch.stack(list(found.values())).tolist()
        return {f"diagnosis/{name}": value for name, value in zip(found, values, strict=True) if math.isfinite(value)}


@torch.no_grad()
def to_real(made: Samples, landmarks: Landmarks, *, teacher: Teacher) -> Metrics:
    """`mmd_real` and `frechet_real` of all images of `made`, measured as in `diagnose`."""
    with torch.autocast(teacher.device.type, enabled=False):
        features = _features(teacher, made.images) / landmarks.scale
        if not features.isfinite().all():
            raise NonFiniteError("the teacher's features of the synthetic images are not finite")
        found = _apart("real", features, made.labels, landmarks.real, landmarks.real_labels, landmarks)
    return {name: value.item() for name, value in found.items()}


def histograms(logits: Tensor) -> dict[str, list[int]]:
    """How many of the teacher's answers (N, K) name each `class`, and how many lie in each bin of `confidence`."""
    confidence, classes = logits.float().softmax(1).max(1)
    bins = (CONFIDENCE_BINS * confidence).long().clamp(max=CONFIDENCE_BINS - 1)
    return {
        "class": classes.bincount(minlength=logits.shape[1]).tolist(),
        "confidence": bins.bincount(minlength=CONFIDENCE_BINS).tolist(),
    }


def _to_guides(features: Tensor, labels: Tensor, parts: list[Tensor], landmarks: Landmarks) -> dict[str, Tensor]:
    """What needs condensed images."""
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
    """Both distances between two labelled sets of features; none where they have no class in common."""
    classes = len(landmarks.spread)
    sides = (by_class(left, left_labels, classes), by_class(right, right_labels, classes))
    mmds = [_mmd(x, y, landmarks.median) for x, y in zip(*sides, strict=True) if len(x) and len(y)]
    if not mmds:
        return {}
    frechet = class_frechet(left, left_labels, right, right_labels, num_classes=classes)
    return {f"mmd_{name}": torch.stack(mmds).mean(), f"frechet_{name}": frechet}


def _mmd(x: Tensor, y: Tensor, median: Tensor) -> Tensor:
    """Of one class. Of all at once the kernels of a hundred classes would take gigabytes."""
    zeros = (torch.zeros(len(part), dtype=torch.long, device=part.device) for part in (x, y))
    return class_mmd(x, next(zeros), y, next(zeros), num_classes=1, median=median)


def _features(teacher: Teacher, images: Tensor) -> Tensor:
    return torch.cat([teacher.observe(part, bn=False).features for part in images.split(512)])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D), (M, D) to (N, M); exact near 0, where the product formula is not."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _spread(features: Tensor) -> Tensor:
    """Mean distance of two different ones; NaN where there are none."""
    pairs = len(features) * (len(features) - 1)
    return _distances(features, features).sum() / pairs if pairs else features.new_tensor(torch.nan)


def _closest(distances: Tensor) -> Tensor:
    """The least of each row; infinite where rows are empty."""
    return distances.amin(1) if distances.shape[1] else distances.new_full((len(distances),), torch.inf)


def _nearest(distances: Tensor) -> Tensor:
    """Mean over rows of the least distance; NaN where there is no row or column."""
    return distances.amin(1).mean() if distances.numel() else distances.new_tensor(torch.nan)


def _ratio(ours: Tensor, real: Tensor | None) -> Tensor:
    """Ratio of means over the classes (K,) in which both are known; NaN where none is."""
    assert real is not None
    known = ours.isfinite() & real.isfinite()
    return ours[known].mean() / real[known].mean()
