"""`Raw` image sets, decoding, and folders of images."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.core.rng import derive_seed
from condkd_ray.core.samples import Samples, to_model, unseen

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")  # named, as some of Pillow's others start programs
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")

Source = tuple[str, bytes | Path]
"""An image as it lies: what to call it in a message, and its bytes or file."""

BATCH_ROWS = 1000
LEAST = 3
"""Images of a class in `read_halves`: one to learn from, one for the proxy set, one to be measured on."""


@dataclass(frozen=True)
class RealImages:
    """Real images as they are: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def samples(self, mean: Sequence[float], std: Sequence[float]) -> Samples:
        """All of them as float32 in the teacher's space, four times their bytes; index first where that is much."""
        return unseen(to_model(self.pixels.float() / 255, mean, std), self.labels)


@dataclass(frozen=True)
class Raw(RealImages):
    """Images as a file holds them, with `class_names` by label."""

    class_names: tuple[str, ...]


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) to (N, C, size, size), bilinear with antialiasing; images of that size are untouched."""
    from torchvision.transforms import functional  # not at the top: it takes as long to import as digits to load

    if tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    return functional.resize(pixels, [size, size], antialias=True)


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


def checked(pixels: Tensor, labels: Tensor, names: tuple[str, ...] | None, what: str) -> Raw:
    """A `Raw` whose labels are within its classes, which are numbered where `names` is None."""
    require(len(labels) > 0, f"number of images in {what}", 0, "at least 1")
    lowest, highest = int(labels.min()), int(labels.max())
    names = names or tuple(str(number) for number in range(highest + 1))
    within = lowest >= 0 and highest < len(names)
    require(within, f"labels in {what}", (lowest, highest), f"0 to {len(names) - 1}, the classes")
    return Raw(pixels, labels, names)


def decode_all(sources: Iterator[Source], size: int | None) -> Tensor:
    """uint8 (N, C, H, W): C is 1 where all images are grey, else 3.

    With `size` all are resized to size x size, a batch at a time. Raises `InputError` where an image cannot be read,
    or where images differ in size and no `size` is given.
    """
    batches: list[Tensor] = []
    sides: tuple[int, ...] = ()
    while listed := list(islice(sources, BATCH_ROWS)):
        images = [_decode(what, source) for what, source in listed]
        sides = sides or tuple(images[0].shape[1:])
        for (what, _), image in zip(listed, images, strict=True):
            accepted = f"{sides} as the first, or give a size"
            fits = size is not None or image.shape[1:] == sides
            require(fits, f"height and width of {what}", tuple(image.shape[1:]), accepted)
        batches.append(_join(images, size))
    require(bool(batches), "number of images", 0, "at least 1")
    channels = max(batch.shape[1] for batch in batches)
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]).contiguous()


def _join(images: list[Tensor], size: int | None) -> Tensor:
    channels = max(image.shape[0] for image in images)
    images = [image.expand(channels, -1, -1) for image in images]
    if size is None:
        return torch.stack(images)
    if len({image.shape for image in images}) > 1:
        return torch.cat([resize(image[None], size) for image in images])
    return resize(torch.stack(images), size)


def _decode(what: str, source: bytes | Path) -> Tensor:
    """(C, H, W) uint8: one channel of a grey image, three of any other; transparency is dropped."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            accepted = "8 bits a channel: " + ", ".join(GREY_MODES + COLOUR_MODES)
            require(image.mode in GREY_MODES + COLOUR_MODES, f"mode of {what}", image.mode, accepted)
            mode = "L" if image.mode in GREY_MODES else "RGB"
            pixels = np.array(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {what}: {error}") from error
    return torch.from_numpy(pixels)[None] if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)
