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
from condkd_ray.data.readers.masks import Classes, read_pairs

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
PAIRED_COLUMNS = (*IMAGE_COLUMNS, "pixel_values")
MASK_COLUMNS = ("mask", "label", "labels", "annotation", "semantic_segmentation")
PAIRED_ROWS = 50
"""Rows of images with masks to read at a time: they are often whole photos."""


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
        accepted = "integers without gaps" + "; masks are read with data.name parquet_masks" * _is_image(numbers.type)
        require(holds, f"column {column!r} of {path}", str(numbers.type), accepted)
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


def read_parquet_masks(
    files: Sequence[Path], classes: Classes, size: Size | None = None, ground: Ground | None = None
) -> Raw:
    """Read the images and masks of Hugging Face image Parquet files, in the given order.

    Columns: an image, `image`, `img` or `pixel_values`, and a mask, `mask`, `label`, `labels`, `annotation` or
    `semantic_segmentation`, each a struct with `bytes` or plain binary. `size`, `ground`: see `decode_all`. Raises
    `InputError` if a file or a column is not usable, and as `read_pairs` does.
    """

    def pairs() -> Iterator[tuple[Source, Source]]:
        for path in files:
            file = _open_parquet(path)
            with _reading(path):
                columns = {"image": _column(file, PAIRED_COLUMNS, path), "mask": _column(file, MASK_COLUMNS, path)}
            yield from ((image, mask) for image, mask in _cells(path, file, columns, PAIRED_ROWS))

    return read_pairs(pairs(), classes, size, ", ".join(map(str, files)), ground)


def _sources(path: Path, file: pq.ParquetFile) -> Iterator[Source]:
    with _reading(path):
        column = _column(file, IMAGE_COLUMNS, path)
    yield from (cells[0] for cells in _cells(path, file, {"image": column}, BATCH_ROWS))


def _is_image(kind: Any) -> bool:
    """Return whether a column of this type can hold image files."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _cells(path: Path, file: pq.ParquetFile, columns: dict[str, str], rows: int) -> Iterator[tuple[Source, ...]]:
    """Yield the files of each row, with their names for messages; `columns`: by what they hold."""
    for column in columns.values():
        with _reading(path):
            kind: Any = file.schema_arrow.field(column).type
        accepted = "binary, or a struct with binary `bytes`"
        require(_is_image(kind), f"column {column!r} of {path}", str(kind), accepted)
    row = 0
    batches = file.iter_batches(rows, columns=list(columns.values()))
    while True:
        with _reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        arrays = [batch.column(column) for column in columns.values()]
        files = [array.field("bytes") if pa.types.is_struct(array.type) else array for array in arrays]
        for cells in zip(*(array.to_pylist() for array in files), strict=True):
            names = [f"{what} {row} of {path}" for what in columns]
            for name, cell in zip(names, cells, strict=True):
                require(cell is not None, name, None, "the bytes of an image file")
            yield tuple(zip(names, cells, strict=True))
            row += 1
