"""Reader of images and labels in Parquet, in Hugging Face's format."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.decoding import BATCH_ROWS, Source, decode_all
from condkd_ray.data.readers.images import Ground, Raw, Size, check_labels, checked

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def read_parquet(files: Sequence[Path], size: Size | None = None, ground: Ground | None = None) -> Raw:
    """Read the images and labels of Hugging Face image Parquet files, in the given order.

    Columns: `image` or `img`, a struct with `bytes` or plain binary; `label`, `labels` or `fine_label`, integers >= 0.
    Class names come from the Hugging Face metadata, if present. `size`, `ground`: see `decode_all`. Raises `InputError`
    if a file, a column, a label or an image is not usable.
    """
    labels: list[int] = []
    names = None
    what = ", ".join(map(str, files))
    tables = [_open_parquet(path) for path in files]
    for path, file in zip(files, tables, strict=True):
        with _reading(path):
            column = _column(file, LABEL_COLUMNS, path)
            numbers = file.read(columns=[column]).column(0)
            here = _class_names(file, column)
        holds = pa.types.is_integer(numbers.type) and numbers.null_count == 0
        require(holds, f"column {column!r} of {path}", str(numbers.type), "integers without gaps")
        # Through a list, because Arrow's own conversion would import pandas.
        labels += numbers.to_pylist()
        same = names is None or here is None or here == names
        require(same, f"class names of {path}", here, f"{names}, as in {files[0]}")
        names = names or here
    check_labels(labels, names, what)
    sources = (source for path, file in zip(files, tables, strict=True) for source in _sources(path, file))
    images = decode_all(sources, size, what, ground)
    raw = checked(images.pixels, torch.tensor(labels), names, what)
    return replace(raw, ground=images.ground, notes=images.notes)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise `InputError` if the block cannot read the Parquet file at `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # any error that Arrow raises is caused by the file
        raise InputError(f"cannot read Parquet file {path}: {' '.join(str(error).split())}") from error


def _open_parquet(path: Path) -> pq.ParquetFile:
    with _reading(path):
        return pq.ParquetFile(path)


def _column(file: pq.ParquetFile, accepted: Sequence[str], path: Path) -> str:
    there = file.schema_arrow.names
    found = [name for name in accepted if name in there]
    require(bool(found), f"columns of {path}", there, " or ".join(accepted))
    return found[0]


def _class_names(file: pq.ParquetFile, column: str) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel feature; None without readable metadata, which is optional."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[column]["names"])
    except (KeyError, ValueError, TypeError):
        return None


def _sources(path: Path, file: pq.ParquetFile) -> Iterator[Source]:
    with _reading(path):
        column = _column(file, IMAGE_COLUMNS, path)
        kind: Any = file.schema_arrow.field(column).type
        in_struct = pa.types.is_struct(kind)
        holder = kind.field("bytes").type if in_struct and kind.get_field_index("bytes") >= 0 else kind
    holds = pa.types.is_binary(holder) or pa.types.is_large_binary(holder)
    require(holds, f"column {column!r} of {path}", str(kind), "binary, or a struct with binary `bytes`")
    row = 0
    batches = file.iter_batches(BATCH_ROWS, columns=[column])
    while True:
        with _reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        cells = batch.column(0).field("bytes") if in_struct else batch.column(0)
        for cell in cells.to_pylist():
            require(cell is not None, f"image {row} of {path}", None, "the bytes of an image file")
            yield f"image {row} of {path}", cell
            row += 1
