"""A grid of images as a PNG file, a row a class."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from condkd_ray.core.files import atomic_write

_GUTTER = 2
_VISIBLE = 48
"""Images are magnified by whole factors until their shorter side has about this many pixels."""
_PAPER = 255


def write_grid(path: Path, images: Any, per_class: int) -> None:
    """Write images (N, C, H, W) uint8, grey or RGB, class by class, as rows of `per_class`. Takes numpy or torch."""
    pixels = np.asarray(images.cpu() if hasattr(images, "cpu") else images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"images are {pixels.dtype} {pixels.shape}; accepted: uint8 (N, 1 or 3, H, W), N > 0")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; accepted: at least 1")
    buffer = io.BytesIO()
    Image.fromarray(_tile(_magnify(pixels), per_class)).save(buffer, format="PNG", optimize=True)
    atomic_write(Path(path), buffer.getvalue())


def _magnify(pixels: np.ndarray) -> np.ndarray:
    """Nearest neighbour, so that an 8 x 8 digit shows its pixels and not a blur."""
    factor = max(1, round(_VISIBLE / min(pixels.shape[2:])))
    return pixels.repeat(factor, axis=2).repeat(factor, axis=3)


def _tile(pixels: np.ndarray, columns: int) -> np.ndarray:
    """(N, C, H, W) to one (height, width) or (height, width, 3) picture; missing places in the last row stay blank."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    places = np.full((rows * columns, channels, height + _GUTTER, width + _GUTTER), _PAPER, dtype=np.uint8)
    places[:count, :, :height, :width] = pixels
    grid = places.reshape(rows, columns, channels, height + _GUTTER, width + _GUTTER).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * (height + _GUTTER), columns * (width + _GUTTER), channels)
    picture = np.pad(picture, ((_GUTTER, 0), (_GUTTER, 0), (0, 0)), constant_values=_PAPER)
    return picture[..., 0] if channels == 1 else picture
