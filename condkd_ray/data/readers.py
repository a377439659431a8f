"""Readers of image sets: folders of images, Parquet as Hugging Face writes it, and data sets known by name.

Known are scikit-learn's digits, the IDX sets (MNIST and its kin), and those torchvision reads. All is read in place;
nothing is written, nothing unpickled but what torchvision has checked the md5 of.
"""

import gzip
import io
import json
import math
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.device import sent
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
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IDX_SETS = {"mnist": ("MNIST", DIGIT_NAMES), "fashion_mnist": ("FashionMNIST", FASHION_NAMES)}
IDX_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
"""Images and labels of train, then of test."""
TORCHVISION_SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


@dataclass(frozen=True)
class RealImages:
    """Real images as they are: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Self:
        """The same images on `device`, still as uint8."""
        return replace(self, pixels=sent(self.pixels, device), labels=sent(self.labels, device))

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


def find_parquet(root: Path, train: str | None, test: str | None) -> tuple[list[Path], list[list[Path]]] | None:
    """The train files, and each set of test files there is; None where `root` holds neither them nor what is named.

    `root` is a folder, one with a single sub-folder of Parquet files, or a train file. Sharded files
    (`test-00000-of-00002.parquet`) are one set. `train`, `test`: names in `root`, paths or patterns; what is named is
    the only candidate. Raises `InputError` where several train sets are there and none is named.
    """
    folder, train = (root.parent, train or root.name) if root.is_file() else (root, train)
    if root.is_dir() and train is None and not list(folder.glob("*.parquet")):
        inner = sorted({path.parent for path in folder.glob("*/train*.parquet")})
        require(len(inner) <= 1, f"folders of Parquet files in {root}", [p.name for p in inner], "one; give it as root")
        folder = inner[0] if inner else folder
    trains = _sets(folder.glob("train*.parquet")) if train is None else [_named(folder, train)]
    tests = _sets(folder.glob("test*.parquet")) if test is None else [_named(folder, test)]
    if not trains:
        accepted = f"train*.parquet in {folder}, or a train file named"
        require(test is None, "test file without a train file", test, accepted)
        return None
    listed = [files[0].name for files in trains]
    accepted = "one set, or name it with --train-file (a pattern will do)"
    require(len(trains) == 1, f"train files in {folder}", listed, accepted)
    shared = [path.name for files in tests for path in files if path.resolve() in {p.resolve() for p in trains[0]}]
    require(not shared, "files read as train and as test", shared, "different files")
    return trains[0], tests


def _named(folder: Path, name: str) -> list[Path]:
    path = folder / Path(name).expanduser()
    found = [path] if path.is_file() else [Path(match) for match in sorted(glob(str(path)))]
    require(bool(found), "Parquet file", name, f"a file or pattern in {folder}, or a path")
    return found


def _sets(paths: Iterable[Path]) -> list[list[Path]]:
    """Files grouped by what they are shards of, all sorted. Raises `InputError` where a shard is missing."""
    sets: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(paths):
        shard = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", path.stem)
        sets.setdefault((shard[1], int(shard[2])) if shard else (path.stem, 1), []).append(path)
    for (name, count), files in sets.items():
        require(len(files) == count, f"number of shards of {name} in {files[0].parent}", len(files), f"{count}, all")
    return list(sets.values())


def read_parquet(files: Sequence[Path], size: int | None = None) -> Raw:
    """Images and labels of Hugging Face image Parquet files, one after the other.

    Columns: `image` or `img`, a struct with `bytes` or plain binary; `label`, `labels` or `fine_label`, integers.
    Class names come from the Hugging Face metadata where there are any. `size`: the side images are resized to.
    """
    labels, names = [], None
    tables = [_open_parquet(path) for path in files]
    for path, file in zip(files, tables, strict=True):
        column = _column(file, LABEL_COLUMNS, path)
        numbers = file.read(columns=[column]).column(0)
        holds = pa.types.is_integer(numbers.type) and numbers.null_count == 0
        require(holds, f"column {column!r} of {path}", str(numbers.type), "integers without gaps")
        # By way of a list: Arrow's own conversion would import pandas.
        labels.append(torch.tensor(numbers.to_pylist(), dtype=torch.int64))
        here = _class_names(file, column)
        same = names is None or here is None or here == names
        require(same, f"class names of {path}", here, f"{names}, as in {files[0]}")
        names = names or here
    pixels = decode_all((s for path, file in zip(files, tables, strict=True) for s in _sources(path, file)), size)
    return checked(pixels, torch.cat(labels), names, ", ".join(map(str, files)))


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read Parquet file {path}: {error}") from error


def _column(file: pq.ParquetFile, accepted: Sequence[str], path: Path) -> str:
    there = file.schema_arrow.names
    found = [name for name in accepted if name in there]
    require(bool(found), f"columns of {path}", there, " or ".join(accepted))
    return found[0]


def _class_names(file: pq.ParquetFile, column: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel feature. The metadata is optional by its nature, so an unreadable one is none."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (KeyError, ValueError, TypeError):
        return None


def _sources(path: Path, file: pq.ParquetFile) -> Iterator[Source]:
    column = _column(file, IMAGE_COLUMNS, path)
    kind: Any = file.schema_arrow.field(column).type
    in_struct = pa.types.is_struct(kind)
    holder = kind.field("bytes").type if in_struct and kind.get_field_index("bytes") >= 0 else kind
    holds = pa.types.is_binary(holder) or pa.types.is_large_binary(holder)
    require(holds, f"column {column!r} of {path}", str(kind), "binary, or a struct with binary `bytes`")
    row = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
        cells = batch.column(0).field("bytes") if in_struct else batch.column(0)
        for cell in cells.to_pylist():
            require(cell is not None, f"image {row} of {path}", None, "the bytes of an image file")
            yield f"image {row} of {path}", cell
            row += 1


def digits() -> Raw:
    """Scikit-learn's 1797 digits (1797, 1, 8, 8), their 0 to 16 spread over 0 to 255."""
    from sklearn.datasets import load_digits  # not at the top: seconds to import, and only digits need it

    bundle: Any = load_digits()
    pixels = torch.from_numpy(bundle.images * 255 / 16).round().to(torch.uint8)[:, None]
    return Raw(pixels, torch.from_numpy(bundle.target).long(), DIGIT_NAMES)


def idx_set(name: str, root: Path, *, download: bool) -> tuple[Raw, Raw]:
    """Train and test of `mnist` or `fashion_mnist`, from `root`, its `raw` or torchvision's folder under it.

    `download` fetches what is not there into torchvision's layout. Raises `InputError` where files are missing.
    """
    kind, names = IDX_SETS[name]
    folders = [root, root / "raw", root / kind / "raw"]
    if download and find_idx(folders) is None:
        _open(kind, root, train=True, download=True)
    files = find_idx(folders)
    accepted = f"{', '.join(IDX_FILES)}, each as it is or .gz, all in one of {', '.join(map(str, folders))}"
    require(files is not None, f"data.root of {name}", str(root), accepted)
    train_images, train_labels, test_images, test_labels = files or []
    return read_idx_pair(train_images, train_labels, names), read_idx_pair(test_images, test_labels, names)


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an IDX file, gzipped or not. Raises `InputError` where it is no such file."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read IDX file {path}: {error}") from error
    require(len(data) >= 4 and data[:3] == b"\x00\x00\x08", f"start of {path}", data[:4], "an IDX file of uint8 values")
    start = 4 + 4 * data[3]
    require(len(data) >= start, f"size of {path} in bytes", len(data), f"at least {start}, its header")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    expected = start + math.prod(shape)
    require(len(data) == expected, f"size of {path} in bytes", len(data), f"{expected}, for an array of {shape}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).view(shape)


def find_idx(folders: Sequence[Path]) -> list[Path] | None:
    """The files of `IDX_FILES`, gzipped or not, in the first of `folders` that has all; None if none has."""
    for folder in folders:
        there = [[p for p in (folder / name, folder / f"{name}.gz") if p.is_file()][:1] for name in IDX_FILES]
        if all(there):
            return [files[0] for files in there]
    return None


def read_idx_pair(images: Path, labels: Path, names: tuple[str, ...] | None = None) -> Raw:
    """Grey images (N, 1, H, W) and their labels from two IDX files; classes are numbered unless `names` are given."""
    pixels, numbers = read_idx(images), read_idx(labels)
    require(pixels.ndim == 3, f"dimensions of {images}", pixels.ndim, "3: images, rows, columns")
    found = tuple(numbers.shape)
    require(found == pixels.shape[:1], f"shape of {labels}", found, f"{len(pixels)}, one an image")
    return checked(pixels[:, None], numbers.long(), names, str(labels))


def torchvision_set(name: str, root: Path, *, download: bool) -> tuple[Raw, Raw]:
    """Train and test of `cifar10`, `cifar100` or `svhn` in torchvision's layout.

    CIFAR's files are pickles; torchvision checks their md5 against the published one before it opens them.
    """
    kind = TORCHVISION_SETS[name]
    svhn = kind == "SVHN"
    parts = []
    for split in ("train", "test"):
        which = {"split": split} if svhn else {"train": split == "train"}
        part = _open(kind, root, download=download, **which)
        pixels = torch.from_numpy(part.data if svhn else part.data.transpose(0, 3, 1, 2)).contiguous()
        labels = torch.as_tensor(part.labels if svhn else part.targets, dtype=torch.int64)
        parts.append(Raw(pixels, labels, DIGIT_NAMES if svhn else tuple(part.classes)))
    return parts[0], parts[1]


def _open(kind: str, root: Path, **options: Any) -> Any:
    import torchvision.datasets  # not at the top: over a second to import

    try:
        with warnings.catch_warnings():
            # CIFAR was pickled by a numpy whose dtypes today's warns of.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return getattr(torchvision.datasets, kind)(root, **options)
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot read {kind} in {root}: {error}; accepted: torchvision's layout or Parquet") from error
