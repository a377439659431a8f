"""Images in one sub-folder a class."""

from pathlib import Path

import torch

from condkd_ray.core.method import require
from condkd_ray.core.rng import derive_seed
from condkd_ray.data.readers.decoding import decode_all
from condkd_ray.data.readers.images import Raw, checked

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LEAST = 3
"""Images of a class in `read_halves`: one to learn from, one for the proxy set, one to be measured on."""


def read_folder(root: Path, size: int | None = None) -> Raw:
    """Images of one sub-folder a class. Classes and images in the order of their names; numbers count as numbers.

    A file `classes.txt` beside the sub-folders, one name a line, gives another order of the classes.
    """
    require(root.is_dir(), "image folder", str(root), "an existing folder with one sub-folder a class")
    folders = _ordered(root, sorted((child for child in root.iterdir() if child.is_dir()), key=lambda one: one.name))
    groups = [sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES) for folder in folders]
    empty = [folder.name for folder, files in zip(folders, groups, strict=True) if not files]
    accepted = f"one sub-folder a class, each with {', '.join(IMAGE_SUFFIXES)} images"
    require(bool(folders), f"number of class folders in {root}", 0, accepted)
    require(not empty, f"classes without images in {root}", empty, accepted)
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(files) for files in groups]))
    pixels = decode_all(((str(file), file) for files in groups for file in files), size)
    return checked(pixels, labels, tuple(folder.name for folder in folders), str(root))


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
    shuffled = [order[whole.labels[order] == label] for label in range(len(counts))]
    held_out = torch.cat([rows[: len(rows) // 2] for rows in shuffled])
    is_test = torch.zeros(len(whole), dtype=torch.bool).index_fill(0, held_out, True)
    return whole[~is_test], whole[is_test]


def _ordered(root: Path, folders: list[Path]) -> list[Path]:
    order = root / "classes.txt"
    if order.is_file():
        names = [line.strip() for line in order.read_text().splitlines() if line.strip()]
        there = [folder.name for folder in folders]
        require(sorted(names) == there, f"names in {order}", names, f"each of {', '.join(there)} once")
        return [root / name for name in names]
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))  # else class "10" would come before "2"
    return folders
