"""How other people's condensed sets lie on disk (`peers.md` B.1): where the images are, and which labels are theirs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers import read_folder, read_parquet

SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
ALLOWED_GLOBALS = [SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
"""What DC's files hold beside tensors: accuracies as numpy float64. The second is how numpy 1 spelled the first."""

ACCEPTED = (
    ".pt or .pth (a dictionary of DC, DSA or DM; a list [images, labels] of IDC; images_*.pt of MTT with labels_*.pt; "
    "*_images.pt of DC-BENCH with *_labels.pt), .parquet, or a folder with one sub-folder a class"
)


def resolve(path: Path) -> Path:
    """The file or folder that is read for `path`.

    Of MTT's folders that is `images_best.pt`, and of its images the un-whitened copy `images_zca_*.pt` where there is
    one: a teacher of images that were not whitened cannot read the others.
    """
    if (path / "images_best.pt").is_file():
        path = path / "images_best.pt"
    match = re.fullmatch(r"images_(best|\d+)", path.stem)
    copy = path.with_name(f"images_zca_{match[1]}{path.suffix}") if match else path
    return copy if copy.is_file() else path


def is_copy(path: Path) -> bool:
    """Whether it is the un-whitened copy of a whitened MTT set."""
    return path.stem.startswith("images_zca_")


def read_pixels(path: Path, which: int = -1) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) as the file holds them, float or uint8, and labels int64 (N,). `which`: see `Imported`.

    Raises `InputError` for what is none of the known layouts, and for files that hold more than tensors and numbers.
    """
    require(path.exists(), "condensed set", str(path), "an existing file or folder")
    path = resolve(path)
    if path.is_dir() or path.suffix == ".parquet":
        raw = read_folder(path) if path.is_dir() else read_parquet([path])
        return raw.pixels, raw.labels
    require(path.suffix in (".pt", ".pth"), "condensed set", str(path), ACCEPTED)
    return _checked(*_pair(_load(path), which, path), path)


def unpack(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Cut each of IDC's images (N, C, H, W) into f x f and blow the parts up to its size: f^2 N images and labels.

    The parts of an image follow one another, row by row. Raises `InputError` where f does not divide the sides.
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
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file makes the loader raise is the file's fault
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f"it names {forbidden[1]}, which is not allowed" if forbidden else str(error).partition("\n")[0]
        raise InputError(f"cannot read {path}: {cause}; accepted: a torch file of tensors and numbers") from error


def _pair(content: Any, which: int, path: Path) -> tuple[Any, Any]:
    """Images and labels of a loaded file: of a repeat in its dictionary, of its list, or of the file beside it."""
    if isinstance(content, Tensor):
        return content, _load(labels_beside(path))
    if isinstance(content, (list, tuple)):
        return _two(content, str(path))
    found: Any = content.get("data") if isinstance(content, dict) else None
    keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    accepted = "a dictionary whose 'data' is a list of [images, labels], such a list, or a tensor"
    require(isinstance(found, (list, tuple)), f"content of {path}", keys, accepted)
    count = len(found)
    require(-count <= which < count, f"condensation.which of {path}", which, f"{-count} to {count - 1}")
    return _two(found[which], f"data[{which}] of {path}")


def labels_beside(path: Path) -> Path:
    """The labels of a file of bare images. Raises `InputError` where there are none."""
    stem = re.sub(r"^images_(zca_)?", "labels_", path.stem)
    stem = re.sub(r"_images$", "_labels", stem)
    beside = path.with_name(stem + path.suffix)
    accepted = "labels_*.pt of images_*.pt or images_zca_*.pt, or *_labels.pt of *_images.pt, in the same folder"
    found = beside.name if beside != path and beside.is_file() else None
    require(found is not None, f"labels of the bare tensor {path}", found, accepted)
    return beside


def _two(pair: Any, what: str) -> tuple[Any, Any]:
    holds = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)
    require(holds, what, type(pair).__name__, "[images, labels], two tensors")
    return pair[0], pair[1]


def _checked(images: Any, labels: Any, path: Path) -> tuple[Tensor, Tensor]:
    require(isinstance(labels, Tensor), f"labels of {path}", type(labels).__name__, "a tensor")
    images, labels = images.detach(), labels.detach()
    holds = images.ndim == 4 and len(images) > 0 and (images.is_floating_point() or images.dtype == torch.uint8)
    require(holds, f"images in {path}", _form(images), "(N, C, H, W), floating or uint8")
    holds = labels.shape == images.shape[:1] and not (labels.is_floating_point() or labels.is_complex())
    require(holds, f"labels in {path}", _form(labels), f"({len(images)},), integers")
    return images, labels.long()


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
