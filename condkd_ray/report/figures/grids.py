"""A trial's image grids: what is kept of them, and side by side, under captions, what guided and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from condkd_ray.core.records import Outcome, Record, condensed_path, grid_path
from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.report.figures.image_grids import write_grid
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import class_major

_HEAD, _GAP, _MARGIN = 32, 24, 3
"""Pixels: above a grid, between two of them, before a caption."""
_LETTERS = 22
"""Of the captions: TensorBoard shows pictures at less than half their size."""
_PAPER, _INK = "white", "black"


def keep(out: Path, record: Record, outcome: Outcome, prepared: Prepared) -> None:
    """Write the grid of the trial and, once for all, that of its condensed set."""
    if outcome.images is not None and outcome.images_per_class:
        write_grid(grid_path(out, record.config_hash), outcome.images, outcome.images_per_class)
    guides = condensed_path(out, record.condensed_hash)
    # A trial without an inversion has just shown them.
    if prepared.condensed is not None and record.inversion != NoInversion.name and not guides.is_file():
        images, per_class = class_major(prepared.condensed, prepared)
        if images is not None:
            write_grid(guides, images, per_class)


def captioned(out: Path, record: Record) -> list[tuple[str, Path]]:
    """Captions and files of the trial's grids, as far as they are there: of condensed images, then of synthetic ones.

    All real images, as a condensed set, are shown where nothing else is: they guide nobody.
    """
    guides, own = condensed_path(out, record.condensed_hash), grid_path(out, record.config_hash)
    real = record.condensation == AllReal.name
    given = "real" if real else "condensed"
    # Where nothing is synthesised, a trial's own examples are of the images it was given.
    if record.inversion == NoInversion.name:
        found = [(given, own)]
    else:
        found = [] if real or not record.condensed_hash else [(given, guides)]
        found.append(("synthetic", own))
    return [(caption, path) for caption, path in found if path.is_file()]


def beside(grids: Sequence[tuple[str, Path]]) -> Image.Image:
    """One picture of captioned PNG files, left to right. At least one; colour where one of them has colour."""
    pictures = []
    for _, path in grids:
        with Image.open(path) as picture:
            pictures.append(picture.copy())
    font = ImageFont.load_default(_LETTERS)
    words = [_MARGIN + round(font.getlength(caption) + 0.5) for caption, _ in grids]
    widths = [max(picture.width, word) for picture, word in zip(pictures, words, strict=True)]
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    height = _HEAD + max(picture.height for picture in pictures)
    whole = Image.new(mode, (sum(widths) + _GAP * (len(widths) - 1), height), _PAPER)
    draw, left = ImageDraw.Draw(whole), 0
    for (caption, _), picture, width in zip(grids, pictures, widths, strict=True):
        draw.text((left + _MARGIN, _MARGIN), caption, fill=_INK, font=font)
        whole.paste(picture, (left, _HEAD))
        left += width + _GAP
    return whole
