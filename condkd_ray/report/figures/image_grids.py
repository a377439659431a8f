"""Grids of images as PNG files, with a row per class or captions of the rows, and a trial's grids side by side."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from condkd_ray.core.records import ALL_REAL, Record, condensed_path, grid_path
from condkd_ray.core.storage import atomic_write

_GUTTER = 2
"""Pixels between two images of a grid."""
_VISIBLE = 48
"""Pixels of an image's shorter side in a grid, about: the factor of magnification is an integer."""
_PAPER = 255
"""Grey value of the empty pixels."""
_HEAD, _GAP, _MARGIN = 32, 24, 3
"""Pixels above a grid for its caption, between two grids, and before a caption."""
_LETTERS = 22
"""Font size of the captions in pixels; large, because TensorBoard shows pictures at less than half their size."""
_ROW_HEAD, _ROW_LETTERS = 28, 16
"""Pixels above a row for its caption, and their font size."""
PNG: dict[str, Any] = {"format": "PNG", "compress_type": zlib.Z_RLE}
"""Arguments of `Image.save`. PNG's filters have found the repeated pixels of an enlarged image before zlib compresses
them: its slower searches for longer matches take 5 to 50 times as long, and their files are as large."""


def write_grid(path: Path, images: Any, per_class: int, rows: Sequence[str] = ()) -> None:
    """Write images, uint8 (N, 1 or 3, H, W) from numpy or torch, sorted by class, in rows of `per_class`, as PNG.

    `rows`: a caption for each row, drawn above it; none without. Raises `ValueError` for other types or shapes.
    """
    pixels = np.asarray(images.cpu() if hasattr(images, "cpu") else images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"images are {pixels.dtype} {pixels.shape}; accepted: uint8 (N, 1 or 3, H, W), N > 0")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; accepted: at least 1")
    if rows and len(pixels) != len(rows) * per_class:
        raise ValueError(f"captions are {list(rows)} for {len(pixels)} images; accepted: one for each {per_class}")
    # Nearest-neighbour magnification keeps the pixels of an 8 x 8 digit sharp.
    factor = max(1, round(_VISIBLE / min(pixels.shape[2:])))
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    buffer = io.BytesIO()
    picture = _captioned_rows(pixels, per_class, rows) if rows else Image.fromarray(_tile(pixels, per_class))
    picture.save(buffer, **PNG)
    atomic_write(Path(path), buffer.getvalue())


def _tile(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Tile (N, C, H, W) into one picture (height, width) or (height, width, 3); unused places stay blank."""
    blank = -len(pixels) % columns
    places = np.pad(pixels, ((0, blank), (0, 0), (0, _GUTTER), (0, _GUTTER)), constant_values=_PAPER)
    _, channels, height, width = places.shape
    grid = places.reshape(-1, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(-1, columns * width, channels)
    picture = np.pad(picture, ((_GUTTER, 0), (_GUTTER, 0), (0, 0)), constant_values=_PAPER)
    return picture[..., 0] if channels == 1 else picture


def _captioned_rows(pixels: np.ndarray, columns: int, captions: Sequence[str]) -> Image.Image:
    """Return the rows of `columns` images, one below the other, with a caption above each."""
    font = ImageFont.load_default(_ROW_LETTERS)
    strips = [Image.fromarray(_tile(row, columns)) for row in np.split(pixels, len(captions))]
    width = max(strips[0].width, *(_MARGIN + round(font.getlength(caption) + 0.5) for caption in captions))
    each = _ROW_HEAD + strips[0].height
    whole = Image.new(strips[0].mode, (width, each * len(strips)), "white")
    draw = ImageDraw.Draw(whole)
    for place, (caption, strip) in enumerate(zip(captions, strips, strict=True)):
        draw.text((_MARGIN, each * place + _ROW_HEAD - _ROW_LETTERS - 4), caption, fill="black", font=font)
        whole.paste(strip, (0, each * place + _ROW_HEAD))
    return whole


def captioned(out: Path, record: Record) -> list[tuple[str, Path]]:
    """Return captions and files of the existing grids of a trial: first condensed images, then synthetic ones.

    If the condensed set consists of all real images, its grid is included only for trials without synthetic images,
    because such a set guides no inversion.
    """
    own, real = grid_path(out, record.config_hash), record.condensation == ALL_REAL
    # Without an inversion, the trial's own grid shows the images that it was given.
    if record.inversion == "none":
        found = [("real" if real else "condensed", own)]
    elif real or not record.condensed_hash:
        found = [("synthetic", own)]
    else:
        found = [("condensed", condensed_path(out, record.condensed_hash)), ("synthetic", own)]
    return [(caption, path) for caption, path in found if path.is_file()]


def beside(grids: Sequence[tuple[str, Path]]) -> Image.Image:
    """Paste captioned PNG files, one or more, side by side into one picture; in colour if any of them is."""
    pictures = []
    for _, path in grids:
        with Image.open(path) as picture:
            pictures.append(picture.copy())
    font = ImageFont.load_default(_LETTERS)
    words = [_MARGIN + round(font.getlength(caption) + 0.5) for caption, _ in grids]
    widths = [max(picture.width, word) for picture, word in zip(pictures, words, strict=True)]
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    height = _HEAD + max(picture.height for picture in pictures)
    whole = Image.new(mode, (sum(widths) + _GAP * (len(widths) - 1), height), "white")
    draw, left = ImageDraw.Draw(whole), 0
    for (caption, _), picture, width in zip(grids, pictures, widths, strict=True):
        draw.text((left + _MARGIN, _MARGIN), caption, fill="black", font=font)
        whole.paste(picture, (left, _HEAD))
        left += width + _GAP
    return whole
