"""Reader of folders with one sub-folder of images per class."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from condkd_ray.core.method import InputError, require
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.text import ENCODINGS, decoded
from condkd_ray.data.copies import fingerprints, first_copies, split_note
from condkd_ray.data.readers.decoding import decode_all
from condkd_ray.data.readers.images import Ground, Raw, Size, checked

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")
"""Files and folders that operating systems leave behind, in lower case. Hidden ones (`.DS_Store`, `._*`,
`.ipynb_checkpoints`) are ignored as well."""
CODE_PAGES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp437", "cp850", "cp852"),
    *("cp866", "mac_roman", "cp932", "gbk", "cp949", "big5", "koi8_r"),
)
"""Code pages to try for a `classes.txt` that is not UTF-8; it is used if exactly one result gives the folders'
names."""
WHY_IGNORED = "images are read only from class folders, not from beside or below them"
LEAST = 3
"""Minimum number of images per class in `read_halves`: one for training, one for the proxy set, one for testing."""


def read_folder(root: Path, size: Size | None = None, ground: Ground | None = None) -> Raw:
    """Read the images of one sub-folder per class, sorted by name; class names that are all numbers by value.

    A file `classes.txt` beside the sub-folders, with one name per line, sets another order of the classes. Hidden files
    and those of operating systems are ignored; other files that are not images are reported in the notes. `size`,
    `ground`: see `decode_all`. Raises `InputError` if a class has no images, or if an image cannot be read.
    """
    require(os.path.isdir(root), "image folder", str(root), "an existing folder with one sub-folder per class")
    there = entries(root)
    folders, order_notes = _ordered(root, [entry for entry in there if entry.is_dir()])
    inside = [entries(folder) for folder in folders]
    groups = [[entry for entry in listed if is_image(entry)] for listed in inside]
    names = tuple(class_name(folder) for folder in folders)
    empty = [name for name, files in zip(names, groups, strict=True) if not files]
    accepted = f"one sub-folder per class, with its images ({', '.join(IMAGE_SUFFIXES)}) directly in it"
    require(bool(folders), f"number of class folders in {root}", 0, accepted)
    require(not empty, f"classes without images in {root}", empty, accepted)
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(files) for files in groups]))
    sources = ((str(file), file) for files in groups for file in files)
    images = decode_all(sources, size, str(root), ground)
    ignored = [*filter(is_image, there), *(entry for listed in inside for entry in listed if not is_image(entry))]
    notes = (*order_notes, *ignored_note(root, ignored, WHY_IGNORED), *images.notes)
    return replace(checked(images.pixels, labels, names, str(root)), ground=images.ground, notes=notes)


def read_halves(root: Path, size: Size | None, seed: int) -> tuple[Raw, Raw]:
    """Split a folder into train and test set, both in the folder's order: a random half per class by `seed`.

    With an odd number the extra image is in the train set. Copies of an image count once and go to the same half, even
    from different classes. Raises `InputError` as `read_folder` does, and if a class has fewer than `LEAST` different
    images.
    """
    whole = read_folder(root, size)
    first = first_copies(fingerprints(whole.pixels))
    whole = replace(whole, notes=(*whole.notes, *split_note(first)))
    generator = torch.Generator().manual_seed(derive_seed(seed, "halves"))
    order = torch.randperm(len(whole), generator=generator)
    order = order[first[order] == order]
    shuffled = [order[whole.labels[order] == label] for label in range(len(whole.class_names))]
    fewest = min(range(len(shuffled)), key=lambda label: len(shuffled[label]))
    copied = len(order) < len(whole)
    what = f"number of {'different ' * copied}images of class {whole.class_names[fewest]} in {root}"
    accepted = f"{LEAST} or more: one for training, one for the proxy set, one held out for testing"
    accepted += "; copies of an image count once, in the class of the first copy" if copied else ""
    require(len(shuffled[fewest]) >= LEAST, what, len(shuffled[fewest]), accepted)
    held_out = torch.cat([rows[: len(rows) // 2] for rows in shuffled])
    is_test = torch.zeros(len(whole), dtype=torch.bool).index_fill(0, held_out, True)[first]
    return whole[~is_test], whole[is_test]


def class_name(folder: Path) -> str:
    """Return the folder's name in UTF-8 whatever the locale, with composed accents, which not every system stores.

    Bytes that are not valid UTF-8 are shown as escapes.
    """
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8", "backslashreplace"))


def entries(folder: Path) -> list[Path]:
    """Return the sorted entries of a folder without hidden files and those of operating systems."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in LITTER]
    return sorted(found, key=lambda path: path.name)


def is_image(path: Path) -> bool:
    """Return whether `path` is a file with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def ignored_note(root: Path, paths: Sequence[Path], why: str) -> list[str]:
    """Return one sentence on the files and folders in `root` that were not read, if there are any."""
    kinds = Counter(path.suffix.lower() or "without a suffix" if path.is_file() else "folders" for path in paths)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [f"ignored in {root}: {listed} ({why})"] if paths else []


def _ordered(root: Path, folders: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the class folders in their order, and the notes on `classes.txt`."""
    order = root / "classes.txt"
    if order.is_file():
        by_name = {class_name(folder): folder for folder in folders}
        names, notes = _listed(order, sorted(by_name))
        accepted = f"each of {', '.join(sorted(by_name))} once"
        require(sorted(names) == sorted(by_name), f"names in {order}", names, accepted)
        return [by_name[name] for name in names], notes
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))  # by value: "2" before "10"
    return folders, []


def _listed(order: Path, there: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names in the file `order`, one per line, and the notes on its encoding."""
    data = order.read_bytes()
    try:
        return _lines(decoded(data)), []
    except UnicodeDecodeError as error:
        readings = {page: _reading(data, page) for page in CODE_PAGES}
        fitting = {page: names for page, names in readings.items() if sorted(names) == list(there)}
        accepted = f"the names of the folders in {ENCODINGS}; none of the known code pages, or several, give them"
        if len(set(map(tuple, fitting.values()))) != 1:
            raise InputError(f"text of {order} is {data[:40]!r} ({error.reason}); accepted: {accepted}") from None
        page = next(iter(fitting))
        return fitting[page], [f"{order} is read as {page}, the only code page that gives the names of the folders"]


def _reading(data: bytes, page: str) -> list[str]:
    try:
        return _lines(data.decode(page))
    except UnicodeDecodeError:
        return []


def _lines(text: str) -> list[str]:
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]
