"""Image grids and feature points of a finished trial, made from its outcome or product and what it was prepared with.

Made for the report alone: real train images are among the points.
"""

from pathlib import Path

import torch
from torch import Tensor

from condkd_ray.core.records import Outcome, Record, condensed_path, grid_path
from condkd_ray.core.samples import Codec
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.models.teacher import Teacher
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.report.tensorboard.embeddings import KINDS, Points
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import Product, class_major

MOST_POINTS = 200
"""Images of each kind, at most; they are spread evenly over the classes."""
PER_STORED_BYTE = 8
"""Bytes on disk for each byte of a points file: itself, and the same values as text in two embeddings."""
_BATCH = 50


def write_grids(out: Path, record: Record, outcome: Outcome, prepared: Prepared) -> None:
    """Write the grid of the trial and, once for all trials that share it, that of its condensed set."""
    if outcome.images is not None and outcome.images_per_class:
        write_grid(grid_path(out, record.config_hash), outcome.images, outcome.images_per_class)
    path = condensed_path(out, record.condensed_hash)
    # The grid of a trial without an inversion shows the condensed set already.
    if prepared.condensed is not None and record.inversion != NoInversion.name and not path.is_file():
        images, per_class = class_major(prepared.condensed, prepared)
        if images is not None:
            write_grid(path, images, per_class)


@torch.no_grad()
def feature_points(prepared: Prepared, product: Product) -> dict[str, Points]:
    """Points by kind, for the kinds that the trial has; none where the real images have no features (`landmarks`)."""
    marks, samples = prepared.landmarks, product.samples
    if marks is None:
        return {}
    found = {"real": _points(marks.real, marks.real_labels)}
    if marks.condensed is not None and marks.condensed_labels is not None:
        found["condensed"] = _points(marks.condensed, marks.condensed_labels)
    if samples is not None:
        chosen = samples[_rows(samples.labels)]
        teacher = prepared.teacher
        images = Codec(product.space, product.mean, product.std).decode(chosen).images.to(teacher.device)
        seen = torch.cat([teacher.observe(part, bn=False).features for part in images.split(_BATCH)])
        found["synthetic"] = Points(seen / marks.scale, chosen.labels)
    return found


def most_bytes(teacher: Teacher) -> int:
    """The bytes that the points of one trial take at most, with the embeddings made of them."""
    return PER_STORED_BYTE * 2 * len(KINDS) * MOST_POINTS * teacher.num_features


def _points(features: Tensor, labels: Tensor) -> Points:
    rows = _rows(labels)
    return Points(features[rows], labels[rows])


def _rows(labels: Tensor) -> Tensor:
    """At most `MOST_POINTS` rows, evenly through the classes and, within a class, from first to last."""
    order = labels.argsort(stable=True)
    count = min(MOST_POINTS, len(order))
    places = torch.linspace(0, len(order) - 1, count, dtype=torch.float64, device=order.device)
    return order[places.round().long()]
