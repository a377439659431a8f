"""Real, condensed and synthetic images as the teacher sees them: a few hundred points a trial, kept beside its record.

    OUT/points/<hash>.safetensors    of the trials whose products are kept: the best of each arm and IPC, or of a search

For the report alone: real train images are among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from condkd_ray.core.files import atomic_write
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Codec
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.product import Product

KINDS = ("real", "condensed", "synthetic")
MOST = 200
"""Images of each kind, as many of each class as there are of another."""
PER_POINT = 8
"""Bytes of a value as it is kept and as text, twice, to those of it as it is kept."""
_BATCH = 50


@dataclass(frozen=True)
class Points:
    """Images of one kind."""

    features: Tensor
    """(N, D): of the teacher's penultimate layer, in units of the real images' root mean squared norm."""
    classes: Tensor
    """(N,): labels; of synthetic images the classes that were asked for."""


def points_path(out: Path, config_hash: str) -> Path:
    """Where the points of that trial are kept, if they are."""
    return Path(out) / "points" / f"{config_hash}.safetensors"


def most_bytes(teacher: Teacher) -> int:
    """What the points of one trial take at most, and the embeddings made of them."""
    return PER_POINT * 2 * len(KINDS) * MOST * teacher.num_features


@torch.no_grad()
def look(prepared: Prepared, product: Product) -> dict[str, Points]:
    """Points by kind, as far as the trial has such images; none where no real images were looked at."""
    marks, samples = prepared.landmarks, product.samples
    if marks is None:
        return {}
    found = {"real": _some(marks.real, marks.real_labels)}
    if marks.condensed is not None and marks.condensed_labels is not None:
        found["condensed"] = _some(marks.condensed, marks.condensed_labels)
    if samples is not None:
        chosen = samples[_rows(samples.labels)]
        teacher = prepared.teacher
        images = Codec(product.space, product.mean, product.std).decode(chosen).images.to(teacher.device)
        seen = torch.cat([teacher.observe(part, bn=False).features for part in images.split(_BATCH)])
        found["synthetic"] = Points(seen / marks.scale, chosen.labels)
    return found


def write_points(path: Path, found: Mapping[str, Points]) -> None:
    """Atomically; features as float16, which is finer than any picture."""
    tensors = {}
    for kind, points in found.items():
        tensors[kind] = points.features.half().cpu().contiguous()
        tensors[f"{kind}_classes"] = points.classes.short().cpu().contiguous()
    atomic_write(path, save(tensors))


def read_points(path: Path) -> dict[str, Points]:
    """Points by kind. Raises `InputError` where the file is damaged."""
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to do without its embedding") from None
    return {kind: Points(tensors[kind].float(), tensors[f"{kind}_classes"].long()) for kind in KINDS if kind in tensors}


def _some(features: Tensor, labels: Tensor) -> Points:
    rows = _rows(labels)
    return Points(features[rows], labels[rows])


def _rows(labels: Tensor) -> Tensor:
    """At most `MOST` rows, evenly through the classes and, within a class, from first to last."""
    order = labels.argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, min(MOST, len(order)), dtype=torch.float64, device=order.device)
    return order[places.round().long()]
