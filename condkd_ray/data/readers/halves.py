"""A folder of few images as a data set: half of each class to learn from, half to be measured on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from condkd_ray.core.method import require
from condkd_ray.core.rng import derive_seed
from condkd_ray.data.readers.images import Raw, read_folder

LEAST = 3
"""Images of a class: one to learn from, one for the proxy set, one to be measured on."""


def read_halves(root: Path, size: int | None, seed: int) -> tuple[Raw, Raw]:
    """Train and test, both in the folder's order: of each class a random half by `seed`, the odd one for train.

    Raises `InputError` as `read_folder` does, and where a class has fewer than `LEAST` images.
    """
    whole = read_folder(root, size)
    counts = whole.labels.bincount(minlength=len(whole.class_names))
    fewest = int(counts.argmin())
    what = f"number of images of class {whole.class_names[fewest]} in {root}"
    accepted = f"{LEAST} or more: one to learn from, one for the proxy set, one held out to be measured on"
    require(int(counts[fewest]) >= LEAST, what, int(counts[fewest]), accepted)
    generator = torch.Generator().manual_seed(derive_seed(seed, "halves"))
    order = torch.randperm(len(whole), generator=generator)
    held_out = torch.cat([_first_half(order[whole.labels[order] == label]) for label in range(len(counts))])
    is_test = torch.zeros(len(whole), dtype=torch.bool).index_fill(0, held_out, True)
    return _rows(whole, ~is_test), _rows(whole, is_test)


def _first_half(rows: Tensor) -> Tensor:
    return rows[: len(rows) // 2]


def _rows(raw: Raw, kept: Tensor) -> Raw:
    return Raw(raw.pixels[kept], raw.labels[kept], raw.class_names)
