"""Reader of IDX files, the format of MNIST and similar data sets."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.images import Raw, checked

IDX_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
"""Names of the image and label files, first of the train set, then of the test set."""


IDX_START = b"\x00\x00\x08"
"""First bytes of an IDX file of uint8 values."""


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array in an IDX file, gzipped or not.

    Raises `InputError` if the file cannot be read or is not a valid IDX file of uint8 values.
    """
    size = f"size of {path} in bytes"
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data, size = gzip.decompress(data), f"decompressed size of {path} in bytes"
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read IDX file {path}: {error}") from error
    accepted = f"{IDX_START!r} and the number of dimensions: IDX with uint8 values"
    require(len(data) >= 4 and data[:3] == IDX_START, f"first bytes of {path}", data[:4], accepted)
    start = 4 + 4 * data[3]
    require(len(data) >= start, size, len(data), f"at least {start}, its header")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    expected = start + math.prod(shape)
    require(len(data) == expected, size, len(data), f"{expected}, for an array of shape {shape}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).view(shape)


def find_idx(folders: Sequence[Path]) -> list[Path] | None:
    """Return the paths of `IDX_FILES`, gzipped or not, in the first folder that has all of them; None if none has."""
    for folder in folders:
        there = [[p for p in (folder / name, folder / f"{name}.gz") if p.is_file()][:1] for name in IDX_FILES]
        if all(there):
            return [files[0] for files in there]
    return None


def read_idx_pair(images: Path, labels: Path, names: tuple[str, ...] | None = None) -> Raw:
    """Read grey images (N, 1, H, W) and labels (N,) from two IDX files; without `names`, class names are numbers.

    Raises `InputError` if a file is not a valid IDX file, or if the files do not fit together.
    """
    pixels, numbers = read_idx(images), read_idx(labels)
    require(pixels.ndim == 3, f"dimensions of {images}", pixels.ndim, "3: images, rows, columns")
    found = tuple(numbers.shape)
    require(found == pixels.shape[:1], f"shape of {labels}", found, f"({len(pixels)},), one label per image")
    return checked(pixels[:, None], numbers.long(), names, str(labels))
