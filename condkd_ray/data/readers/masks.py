"""Reader of images with masks: a class number, or a colour that stands for a class, for each pixel of an image."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.core.text import read_text
from condkd_ray.data.readers.decoding import DEEP_MODES, MOST, Source, decode_all, opened, upright
from condkd_ray.data.readers.images import Ground, Raw, Size, resize_masks, without_void

NUMBER_MODES = ("1", "L", "P", *DEEP_MODES)
"""Pillow's modes of masks that hold class numbers: 1-bit, 8-bit grey, palette (the index counts), and 16-bit grey."""
COLOUR_MODES = ("RGB", "RGBA")
CLASS_FILES = ("class_dict.csv", "classes.txt")
"""Files with one class per line, `name,r,g,b`, or in `classes.txt` the name alone."""
VOID = (255,)
"""Usual value of pixels without a class, as in Pascal VOC and Cityscapes."""
CAMVID_NAMES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
"""Classes of CamVid with the labels of SegNet (Badrinarayanan et al., PAMI 2017), in the order of their numbers."""
CAMVID_VOID = (11, *VOID)
MOST_NUMBERED = 1000
"""Most classes without names (our choice): a larger value is a mistake or an instance number, not a class."""
SCALED = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow multiplies the values of grey PNG files of 2 and 4 bits."""
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
BEYOND = -2


@dataclass(frozen=True)
class Classes:
    """The meaning of the values in masks. Values of `void` have no class; the others are classes, in their order.

    `names`: by value, those of void values included; None if they are only numbered. `colours`: (r, g, b) by value, for
    colour masks. `origin`: where the names come from, and `folder` where a file with names may be, for messages.
    """

    names: tuple[str, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    void: tuple[int, ...] = VOID
    origin: str = ""
    folder: str = ""

    @cached_property
    def table(self) -> np.ndarray:
        """The label of each value, int16 (65536,): a class, -1 for void, or `BEYOND`."""
        limit = MOST_NUMBERED if self.names is None else len(self.names)
        table = np.full(MOST + 1, BEYOND, np.int16)
        table[list(self.void)] = UNLABELLED
        kept = np.flatnonzero(table[:limit] == BEYOND)
        table[kept] = np.arange(len(kept))
        return table

    @cached_property
    def values(self) -> list[int]:
        """The value of each class."""
        return np.flatnonzero(self.table >= 0).tolist()

    @cached_property
    def by_code(self) -> tuple[np.ndarray, np.ndarray]:
        """The 24-bit codes of the colours, ascending, and their values."""
        codes = _codes(np.array(self.colours or np.empty((0, 3)), np.int64))
        order = codes.argsort()
        return codes[order], order

    @property
    def are_grey(self) -> bool:
        """True if all colours are grey; then they apply to 8-bit grey masks, too."""
        return bool(self.colours) and all(red == green == blue for red, green, blue in self.colours or ())

    def class_names(self, highest: int) -> tuple[str, ...]:
        """Return the names of all classes, or, if they are only numbered, the values up to that of class `highest`."""
        if self.names is None:
            return tuple(map(str, self.values[: highest + 1]))
        return tuple(self.names[value] for value in self.values)

    def as_in(self, train: Raw) -> "Classes":
        """Return the classes for the masks of other parts: numbered classes end with the highest one in `train`."""
        if self.names is not None:
            return self
        names = tuple(map(str, range(int(train.class_names[-1]) + 1)))
        return replace(self, names=names, origin="the train masks")

    def notes(self, labels: Tensor) -> Iterator[str]:
        """Yield notes on classes that are probably void: one with such a name, and 255 without a name in `labels`."""
        for value in self.values if self.names else ():
            name = (self.names or ())[value]
            if name.strip().lower() in VOID_NAMES:
                yield f"{name} of {self.origin} counts as a class; with {value} in data.ignore_index it is void"
        names = self.class_names(int(labels.max()))
        for value in VOID:
            # A class without a name has its number as its name.
            if str(value) in names and bool((labels == names.index(str(value))).any()):
                given = " ".join(map(str, self.void)) or "empty"
                wanted = " ".join(map(str, (*self.void, value)))
                text = (
                    f"value {value} of the masks, usually void, counts as a class, because data.ignore_index is {given}"
                )
                yield f"{text}; give --data.ignore_index {wanted} to leave it out"


def find_classes(folder: Path, void: tuple[int, ...]) -> Classes:
    """Return the classes of masks in `folder`: named by a file of `CLASS_FILES` in it, if there is one.

    Each line is one class, in the order of the values: `name,r,g,b`, or the name alone. A header `name,r,g,b` is
    skipped. Raises `InputError` if there are two such files, or if one is not valid.
    """
    files = [path for path in (folder / name for name in CLASS_FILES) if path.is_file()]
    names = [path.name for path in files]
    require(len(files) <= 1, f"files with classes in {folder}", names, "one of them")
    if not files:
        return Classes(void=void, folder=str(folder))
    path = files[0]
    lines = [line.strip() for line in read_text(path, "file with classes", "one class per line").splitlines()]
    rows = [_row(line) for line in lines if line]
    if rows and [cell.lower() for cell in rows[0][1:]] == ["r", "g", "b"]:
        rows = rows[1:]
    require(bool(rows), f"number of classes in {path}", 0, "2 or more, one per line")
    kinds = {len(row) for row in rows}
    whole = kinds == {4} or (kinds == {1} and path.suffix == ".txt")
    accepted = "name,r,g,b in each line" + ("" if path.suffix == ".csv" else ", or a name in each line")
    odd = next((row for row in rows if len(row) != 4), rows[0])
    require(whole, f"line of {path}", ",".join(odd), accepted)
    named = tuple(row[0] for row in rows)
    twice = next((name for name in named if named.count(name) > 1), None)
    require(twice is None, f"name of two classes in {path}", twice, "a different name for each class")
    colours = None
    if kinds == {4}:
        colours = tuple((int(row[1]), int(row[2]), int(row[3])) for row in rows)
        wrong = next((one for one in colours if max(one) > 255 or colours.count(one) > 1), None)
        require(wrong is None, f"colour in {path}", wrong, "r, g, b from 0 to 255, different for each class")
    require(len(named) <= np.iinfo(np.int16).max, f"number of classes in {path}", len(named), "32767 or less")
    return Classes(named, colours, void, str(path), str(folder))


def _row(line: str) -> list[str]:
    """Return name, red, green and blue of a line, or the whole line if it has no colour."""
    cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
    coloured = len(cells) >= 4 and (all(cell.isdecimal() for cell in cells[-3:]) or cells[-3:] in (["r", "g", "b"],))
    return [",".join(cells[:-3]), *cells[-3:]] if coloured else [line]


def read_pairs(
    pairs: Iterator[tuple[Source, Source]], classes: Classes, size: Size | None, what: str, ground: Ground | None = None
) -> Raw:
    """Read images and their masks, given as pairs, one after the other; labels are int16 (N, H, W).

    Images are decoded as by `decode_all`; `size`, `ground`: see there. Masks are rotated by their own EXIF orientation,
    and resized by the label at each pixel's centre. Images whose masks are void everywhere are left out, with a note.
    Raises `InputError` naming the file if an image or a mask cannot be read, if a mask has another size than its
    upright image or values that are no class, and if no pixel of any mask has a class.
    """
    masks: list[Tensor] = []
    latest: list[tuple[str, Source, tuple[int, ...]]] = []

    def images() -> Iterator[Source]:
        for image, (name, file) in pairs:
            mask = read_mask(name, file, classes)
            latest[:] = [(name, image, tuple(mask.shape))]
            masks.append(mask if size is None else resize_masks(mask[None], size)[0])
            yield image

    def check(_: str, sides: tuple[int, ...]) -> None:
        name, image, shape = latest[0]
        accepted = f"{sides}, as its image {image[0]}"
        if shape != sides and shape == _stored(image):
            accepted += ", which is rotated by its EXIF orientation: rotate the mask likewise"
        require(shape == sides, f"height and width of {name}", shape, accepted)

    decoded = decode_all(images(), size, what, ground, check)
    labels = torch.stack(masks)
    names = classes.class_names(int(labels.max()))
    notes = (*classes.notes(labels), *decoded.notes)
    return without_void(Raw(decoded.pixels, labels, names, decoded.ground, notes), f"images in {what}")


def _stored(image: Source) -> tuple[int, int]:
    """Return height and width of an image file before any rotation."""
    with opened(*image) as found:
        return found.height, found.width


def read_mask(what: str, source: bytes | Path, classes: Classes) -> Tensor:
    """Return the labels of a mask, int16 (H, W). Raises `InputError` naming it `what` if it is not valid."""
    with opened(what, source) as image:
        require(image.format != "JPEG", f"format of {what}", "JPEG", "PNG, or another lossless format")
        frames = getattr(image, "n_frames", 1)
        require(frames == 1, f"number of frames of {what}", frames, "1")
        factor = SCALED.get(_raw_mode(image), 1)
        values = _values(upright(image)[0], what, classes) // factor
    labels = classes.table[values]
    if (labels == BEYOND).any():
        most = len(classes.names) if classes.names else MOST_NUMBERED
        origin = f"the number of classes in {classes.origin}" if classes.names else _named(classes)
        void = ", ".join(map(str, classes.void)) or "none"
        accepted = f"less than {most}, {origin}, or a void value (data.ignore_index: {void})"
        raise InputError(f"highest value of {what} is {values[labels == BEYOND].max()}; accepted: {accepted}")
    return torch.from_numpy(labels)


def _raw_mode(image: Image.Image) -> str:
    """Return how the values of a PNG file are stored, such as "L;4"; empty for other formats."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _named(classes: Classes) -> str:
    return f"or names of the classes in {' or '.join(CLASS_FILES)} in {classes.folder}"


def _values(image: Image.Image, what: str, classes: Classes) -> np.ndarray:
    """Return the values of a mask, int64 (H, W); for a colour, the number of its class."""
    numbers = "one class number per pixel: 1-bit, 8-bit grey, palette, or 16-bit grey"
    if image.mode in COLOUR_MODES:
        wanted = f"{numbers}; or colours, with a file class_dict.csv in {classes.folder} whose lines are name,r,g,b"
        require(classes.colours is not None, f"mode of {what}", image.mode, wanted if classes.folder else numbers)
        return _of_colours(np.array(image.convert("RGB")).astype(np.int64), what, classes)
    require(image.mode in NUMBER_MODES, f"mode of {what}", image.mode, numbers)
    values = np.array(image).astype(np.int64)
    if image.mode == "L" and classes.are_grey:
        return _of_colours(np.stack([values] * 3, -1), what, classes)
    lowest, highest = int(values.min()), int(values.max())
    require(lowest >= 0 and highest <= MOST, f"values of {what}", (lowest, highest), f"0 to {MOST}")
    return values


def _of_colours(colours: np.ndarray, what: str, classes: Classes) -> np.ndarray:
    """Return the value of each colour (H, W, 3)."""
    known, values = classes.by_code
    codes = _codes(colours)
    places = known.searchsorted(codes).clip(max=len(known) - 1)
    foreign = known[places] != codes
    if foreign.any():
        row, column = (int(place) for place in np.argwhere(foreign)[0])
        accepted = (
            f"the colours of the {len(known)} classes in {classes.origin}; a line for void in it, whose number "
            "(0 for the first class) is in data.ignore_index, leaves a colour out"
        )
        colour = tuple(int(value) for value in colours[row, column])
        raise InputError(f"colour of {what} in row {row}, column {column} is {colour}; accepted: {accepted}")
    return values[places]


def _codes(colours: np.ndarray) -> np.ndarray:
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
