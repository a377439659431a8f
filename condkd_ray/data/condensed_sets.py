"""Reader of condensed sets that other programs wrote: the location of images and labels in each known file layout.

The layouts are those of the released code of DC, DSA, DM, MTT and IDC, of KIP's files, and of DC-BENCH.
Letters: N images, C channels, H and W height and width, K classes.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers import read_folder, read_parquet

SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
NUMBERS = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
ALLOWED_GLOBALS = [
    *(SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), np.dtype),
    *(type(np.dtype(number)) for number in NUMBERS),
]
"""Types in DC's files besides tensors: accuracies and labels as numpy numbers. `SCALAR` occurs twice because numpy 1
had another name for it."""

TORCH, NUMPY = (".pt", ".pth"), (".npy", ".npz")
ACCEPTED = (
    ".pt or .pth (a dictionary of DC, DSA or DM; a list [images, labels] of IDC; images_*.pt of MTT with labels_*.pt; "
    "*_images.pt of DC-BENCH with *_labels.pt), .npz of KIP, images.npy with labels.npy, .parquet, or a folder with "
    "one sub-folder per class"
)
IMAGE_KEYS = ("images", "image", "imgs", "train_images", "x", "x_train", "data")
LABEL_KEYS = ("labels", "label", "targets", "train_labels", "y", "y_train")
"""Keys of images and of labels in a dictionary or an .npz file, in upper or lower case."""


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MTT_IMAGES = r"images_(?:zca_)?(best|\d+)\.pt"
"""File names of MTT images, the best ones or those of a step, optionally their un-whitened copies."""


@dataclass(frozen=True)
class StoredSet:
    """Images (N, C, H, W), float or uint8 as in the file, and their classes, int64 (N,)."""

    pixels: Tensor
    labels: Tensor
    soft: bool = False
    """True if the labels were soft (N, K); only the largest entry of each row is used."""
    class_names: tuple[str, ...] = ()
    """Class names by label, if the file or folder has names other than numbers."""


def resolve(path: Path) -> Path:
    """Return the file or folder that is read for `path`.

    In an MTT folder that is `images_best.pt`, or the only `images_*.pt`. Instead of MTT images their un-whitened copy
    `images_zca_*.pt` is read if it exists, because a teacher trained without whitening cannot use the whitened ones.
    Raises `InputError` for a folder with several candidates.
    """
    if os.path.isdir(path):
        matches = [match for name in os.listdir(path) if (match := re.fullmatch(MTT_IMAGES, name))]
        stages = {match[1] for match in matches}
        if stages:
            several = ", ".join(sorted((match[0] for match in matches), key=lambda name: (len(name), name)))
            accepted = (
                f"the path of one of its files ({several}), or a folder with images_best.pt or only one images_*.pt"
            )
            require("best" in stages or len(stages) == 1, "condensed set", str(path), accepted)
            path = path / f"images_{'best' if 'best' in stages else next(iter(stages))}.pt"
    match = re.fullmatch(r"images_(best|\d+)", path.stem)
    copy = path.with_name(f"images_zca_{match[1]}{path.suffix}") if match else path
    return copy if os.path.isfile(copy) else path


def is_copy(path: Path) -> bool:
    """Return whether `path` is the un-whitened copy of a whitened MTT set."""
    return path.stem.startswith("images_zca_")


def read_stored(path: Path, which: int = -1, image_shape: Sequence[int] | None = None) -> StoredSet:
    """Read the whole set, in the order of the file. `which`: see `Imported`.

    The teacher's `image_shape` (C, H, W) is needed to recognise images (N, H, W, C), and grey images (N, H, W). Raises
    `InputError` for unknown layouts, for files with other content than arrays and numbers, for labels that are no
    classes, and for non-finite pixels.
    """
    require(os.path.exists(path), "condensed set", str(path), "an existing file or folder")
    path = resolve(path)
    if path.is_dir() or path.suffix == ".parquet":
        raw = read_folder(path) if path.is_dir() else read_parquet([path])
        named = not all(name.isdecimal() for name in raw.class_names)
        return StoredSet(raw.pixels, raw.labels, class_names=raw.class_names if named else ())
    require(path.suffix in TORCH + NUMPY, "condensed set", str(path), ACCEPTED)
    images, labels = _pair(_load(path), which, path)
    pixels = _images(images, path, image_shape)
    return StoredSet(pixels, *_labels(labels, len(pixels), path))


def unpack(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Split each of IDC's images (N, C, H, W) into f x f parts, resized to H x W: returns f^2 N images and labels.

    The parts of an image are consecutive, row by row. Raises `InputError` if f does not divide the sides.
    """
    sides = tuple(images.shape[2:])
    require(all(side % factor == 0 for side in sides), "condensation.factor", factor, f"a divisor of both of {sides}")
    if factor == 1:
        return images, labels
    rows = images.unflatten(2, (factor, -1)).unflatten(4, (factor, -1))  # (N, C, f, H / f, f, W / f)
    parts = rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    parts = F.interpolate(parts, size=sides, mode="bilinear", align_corners=False)
    return parts, labels.repeat_interleave(factor**2)


def _load(path: Path) -> Any:
    """Load tensors, numbers, lists and dictionaries from a file without executing any of its content."""
    try:
        if path.suffix in NUMPY:
            return _numpy(path)
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any error that the loader raises is caused by the file
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f"it contains {forbidden[1]}, which is not allowed" if forbidden else str(error).partition("\n")[0]
        kind = "a numpy file of numbers" if path.suffix in NUMPY else "a torch file of tensors and numbers"
        raise InputError(f"cannot read {path}: {cause}; accepted: {kind}") from error


def _numpy(path: Path) -> Any:
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return _native(found)
        return {key: _native(found[key]) for key in found.files if key.lower() in IMAGE_KEYS + LABEL_KEYS}


def _native(array: np.ndarray) -> Tensor:
    """Convert an array to this machine's byte order and to a tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _pair(content: Any, which: int, path: Path) -> tuple[Any, Any]:
    """Return images and labels of a loaded dictionary (of one repeat) or list, or of a tensor and its second file."""
    if isinstance(content, Tensor):
        return content, _load(labels_beside(path))
    if isinstance(content, (list, tuple)):
        return _two(content, str(path))
    keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    named = _named(content) if isinstance(content, dict) else None
    if named is not None:
        return _two(named, str(path))
    found: Any = content.get("data") if isinstance(content, dict) else None
    accepted = (
        "a dictionary whose 'data' is a list of [images, labels], one with 'images' and 'labels', such a list, or a "
        "tensor with a file of labels beside it"
    )
    require(isinstance(found, (list, tuple)), f"content of {path}", keys, accepted)
    count = len(found)
    require(-count <= which < count, f"condensation.which of {path}", which, f"{-count} to {count - 1}")
    return _two(found[which], f"data[{which}] of {path}")


def _named(content: dict[Any, Any]) -> tuple[Any, Any] | None:
    """Return images and labels of a dictionary with known keys; None if one of the two is missing."""
    found = {str(key).lower(): value for key, value in content.items()}
    images, labels = ([found[key] for key in keys if key in found] for keys in (IMAGE_KEYS, LABEL_KEYS))
    return (images[0], labels[0]) if images and labels else None


def labels_beside(path: Path) -> Path:
    """Return the path of the labels for a file with only images. Raises `InputError` if there is none."""
    stem = re.sub(r"^images_(zca_)?", "labels_", path.stem)
    stem = re.sub(r"_images$", "_labels", stem)
    beside = path.with_name(("labels" if stem == "images" else stem) + path.suffix)
    accepted = (
        "labels_*.pt of images_*.pt or images_zca_*.pt, *_labels.pt of *_images.pt, or labels.npy of images.npy, in "
        "the same folder"
    )
    found = beside.name if beside != path and os.path.isfile(beside) else None
    require(found is not None, f"labels of the bare tensor {path}", found, accepted)
    return beside


def _two(pair: Any, what: str) -> tuple[Any, Any]:
    holds = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], Tensor)
    require(holds, what, type(pair).__name__, "[images, labels], two tensors, or a tensor and a list of labels")
    return pair[0], pair[1]


def _images(images: Any, path: Path, image_shape: Sequence[int] | None) -> Tensor:
    """Return images as (N, C, H, W), from (N, H, W, C) or, if they are grey, (N, H, W)."""
    require(isinstance(images, Tensor), f"images in {path}", type(images).__name__, "a tensor")
    dense = images.layout == torch.strided and (images.dtype in FLOATS or not images.is_floating_point())
    require(dense, f"images in {path}", f"{_form(images)}, {images.layout}", "dense float32, or another usual float")
    images, given = images.detach(), _form(images)
    if image_shape is not None:
        channels, height, width = image_shape
        if images.shape[1:] == (height, width) and channels == 1:
            images = images[:, None]
        elif images.shape[1:] == (height, width, channels) and images.shape[1:] != (channels, height, width):
            images = images.permute(0, 3, 1, 2).contiguous()
    holds = images.ndim == 4 and len(images) > 0 and (images.is_floating_point() or images.dtype == torch.uint8)
    require(holds, f"images in {path}", given, "(N, C, H, W) or (N, H, W, C), floating or uint8")
    broken = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist() if images.is_floating_point() else []
    named = f"images {', '.join(map(str, broken[:5]))}{' and others' if len(broken) > 5 else ''}"
    require(not broken, f"pixels in {path}", "not all finite", f"finite values, but {named} contain others")
    return images.float() if images.dtype == torch.float64 else images


def _labels(labels: Any, count: int, path: Path) -> tuple[Tensor, bool]:
    """Return the classes, int64 (N,), and whether they are the largest entries of soft labels."""
    what = f"labels in {path}"
    if isinstance(labels, (list, tuple)):
        require(_plain(labels), what, "a list of other values", "a list of numbers, or a tensor")
        try:
            labels = torch.as_tensor(np.array(labels))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{what} are a list that is not an array ({error}); accepted: class numbers") from None
    require(isinstance(labels, Tensor), f"labels of {path}", type(labels).__name__, "a tensor or a list")
    require(labels.layout == torch.strided, f"labels of {path}", str(labels.layout), "a dense tensor")
    labels = labels.detach()
    labels = labels.flatten() if labels.shape == (count, 1) else labels
    kinds = (
        f"({count},), whole numbers, or ({count}, classes), one-hot or soft, with one largest value per row and no NaN"
        + "; masks of segmentation are not read" * (labels.ndim > 2)
    )
    fits = labels.ndim in (1, 2) and len(labels) == count and labels.numel() > 0 and not labels.is_complex()
    require(fits, what, _form(labels), kinds)
    numbers = labels.double()
    require(bool(numbers.isfinite().all()), what, "not all finite", kinds)
    if labels.ndim == 2:
        return _largest(numbers, what, kinds)
    whole = bool((numbers == numbers.round()).all()) and numbers.abs().max().item() < 2**31
    require(whole, what, f"{_form(labels)}, {numbers.min():g} to {numbers.max():g}", kinds)
    return numbers.long(), False


def _plain(labels: Sequence[Any]) -> bool:
    return all(isinstance(label, (int, float, np.number)) for label in labels)


def _largest(rows: Tensor, what: str, kinds: str) -> tuple[Tensor, bool]:
    """Return each row's argmax, and whether any row is soft: not one-hot, nor one-hot with an offset (such as -0.1)."""
    top = rows.max(1, keepdim=True).values
    tied = ((rows == top).sum(1) > 1).nonzero().flatten().tolist()
    require(not tied, what, f"several largest values in row {tied[0] if tied else 0}", kinds)
    others = rows.masked_fill(rows == top, torch.inf).min(1, keepdim=True).values
    return rows.argmax(1), bool(((rows != top) & ((rows - others).abs() > 1e-6)).any())


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
