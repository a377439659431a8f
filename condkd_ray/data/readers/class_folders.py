"""Images in one sub-folder a class."""

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
from condkd_ray.data.readers.images import Ground, Raw, checked

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")
"""Beside all that is hidden (`.DS_Store`, `._*`, `.ipynb_checkpoints`): what systems leave behind, in small letters."""
CODE_PAGES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp437", "cp850", "cp852"),
    *("cp866", "mac_roman", "cp932", "gbk", "cp949", "big5", "koi8_r"),
)
"""In which a `classes.txt` is tried that is no UTF-8: it is read where just one reading gives the folders' names."""
LEAST = 3
"""Images of a class in `read_halves`: one to learn from, one for the proxy set, one to be measured on."""


def read_folder(root: Path, size: int | None = None, ground: Ground | None = None) -> Raw:
    """Images of one sub-folder a class. Classes and images in the order of their names; numbers count as numbers.

    A file `classes.txt` beside the sub-folders, one name a line, gives another order of the classes. Hidden files and
    what systems leave behind are neither classes nor images; other files that are no images are told in the notes.
    `size`, `ground`: see `decode_all`. Raises `InputError` where a class has no images, or one cannot be read.
    """
    require(os.path.isdir(root), "image folder", str(root), "an existing folder with one sub-folder a class")
    there = _entries(root)
    folders, order_notes = _ordered(root, [entry for entry in there if entry.is_dir()])
    entries = [_entries(folder) for folder in folders]
    groups = [[entry for entry in listed if _is_image(entry)] for listed in entries]
    names = tuple(class_name(folder) for folder in folders)
    empty = [name for name, files in zip(names, groups, strict=True) if not files]
    accepted = f"one sub-folder a class, with its images ({', '.join(IMAGE_SUFFIXES)}) directly in it"
    require(bool(folders), f"number of class folders in {root}", 0, accepted)
    require(not empty, f"classes without images in {root}", empty, accepted)
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(files) for files in groups]))
    sources = ((str(file), file) for files in groups for file in files)
    images = decode_all(sources, size, str(root), ground)
    passed = [*filter(_is_image, there), *(entry for listed in entries for entry in listed if not _is_image(entry))]
    notes = (*order_notes, *_passed_over(root, passed), *images.notes)
    return replace(checked(images.pixels, labels, names, str(root)), ground=images.ground, notes=notes)


def read_halves(root: Path, size: int | None, seed: int) -> tuple[Raw, Raw]:
    """Train and test, both in the folder's order: of each class a random half by `seed`, the odd one for train.

    Copies of one image count once and go to one side together, also where they lie in several classes. Raises
    `InputError` as `read_folder` does, and where a class has fewer than `LEAST` different images.
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
    accepted = f"{LEAST} or more: one to learn from, one for the proxy set, one held out to be measured on"
    accepted += "; copies of one image count once, in the class that has the first" if copied else ""
    require(len(shuffled[fewest]) >= LEAST, what, len(shuffled[fewest]), accepted)
    held_out = torch.cat([rows[: len(rows) // 2] for rows in shuffled])
    is_test = torch.zeros(len(whole), dtype=torch.bool).index_fill(0, held_out, True)[first]
    return whole[~is_test], whole[is_test]


def class_name(folder: Path) -> str:
    """Its name in UTF-8 whatever the locale, letters and accents composed, as not every system stores them.

    Bytes that are no UTF-8 are shown as numbers.
    """
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8", "backslashreplace"))


def _entries(folder: Path) -> list[Path]:
    """What lies there, sorted, without litter."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in LITTER]
    return sorted(found, key=lambda path: path.name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _passed_over(root: Path, paths: Sequence[Path]) -> list[str]:
    """One sentence on what was not read."""
    kinds = Counter(path.suffix.lower() or "without a suffix" if path.is_file() else "folders" for path in paths)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    where = "images are read from class folders alone, not from beside or below them"
    return [f"passed over in {root}: {told} ({where})"] if paths else []


def _ordered(root: Path, folders: list[Path]) -> tuple[list[Path], list[str]]:
    """The class folders in their order, and what is to be told of `classes.txt`."""
    order = root / "classes.txt"
    if order.is_file():
        by_name = {class_name(folder): folder for folder in folders}
        names, notes = _listed(order, sorted(by_name))
        accepted = f"each of {', '.join(sorted(by_name))} once"
        require(sorted(names) == sorted(by_name), f"names in {order}", names, accepted)
        return [by_name[name] for name in names], notes
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))  # else class "10" would come before "2"
    return folders, []


def _listed(order: Path, there: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names in `order`, a line each."""
    data = order.read_bytes()
    try:
        return _lines(decoded(data)), []
    except UnicodeDecodeError as error:
        readings = {page: _reading(data, page) for page in CODE_PAGES}
        fitting = {page: names for page, names in readings.items() if sorted(names) == list(there)}
        accepted = f"the names of the folders in {ENCODINGS}; no code page gives them either, or several do"
        if len(set(map(tuple, fitting.values()))) != 1:
            raise InputError(f"text of {order} is {data[:40]!r} ({error.reason}); accepted: {accepted}") from None
        page = next(iter(fitting))
        return fitting[page], [f"{order} is read as {page}, as that gives the names of the folders"]


def _reading(data: bytes, page: str) -> list[str]:
    try:
        return _lines(data.decode(page))
    except UnicodeDecodeError:
        return []


def _lines(text: str) -> list[str]:
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]
