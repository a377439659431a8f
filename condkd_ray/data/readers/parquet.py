"""Image Parquet as Hugging Face writes it: which files there are, and what is in them."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.images import BATCH_ROWS, Raw, Source, checked, decode_all

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


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
