"""Chunks of encoded samples: the Arrow file of one, and which small ones are worth joining.

An id is the running number of a sample in its store; a chunk holds consecutive ids, and its file is named by them.
Letters: N samples, C channels, H W height and width, K classes.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from condkd_ray.core.samples import Encoded
from condkd_ray.core.storage import Location, files, reading, writing

COMPACT = 4096
"""Small chunks next to each other are joined up to this many samples (our choice: 12 MiB of 32x32 colour images) ..."""
JOIN_FROM = 16
"""... where so many of them lie together, or no more would fit; samples of usual rounds are copied once or twice."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, labels, logits of an `Encoded`, as numpy: what crosses process borders."""


def columns(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, logits."""
    return encoded.images, encoded.labels, encoded.logits


def to_arrays(encoded: Encoded) -> Arrays:
    """Tensors to numpy, on the CPU."""
    return tuple(column.detach().cpu().contiguous().numpy() for column in columns(encoded))  # type: ignore[return-value]


def from_arrays(arrays: Arrays) -> Encoded:
    """Numpy to tensors over the same memory. Read-only arrays stay so by our care: gather copies, nothing writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Encoded(*map(torch.from_numpy, arrays))


def moved(encoded: Encoded, device: torch.device) -> Encoded:
    """The same on `device`; not copied where it lies there."""
    return Encoded(*(column.to(device) for column in columns(encoded)))


def chunk_path(folder: Location, start: int, stop: int) -> Location:
    """File of the chunk with ids start..stop-1."""
    return folder / f"{start:010d}-{stop:010d}.arrow"


def chunk_range(path: Location) -> tuple[int, int]:
    """(start, stop) from a chunk's file name."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def write_chunk(path: Location, arrays: Arrays) -> None:
    """One Arrow IPC file with one record batch, written atomically. Logits (N, 0) have no column."""
    wide = {"images": arrays[0], "logits": arrays[2]}
    columns, shapes = {"labels": pa.array(arrays[1], pa.int64())}, {}
    for name, array in wide.items():
        shapes[name] = [str(array.dtype), *array.shape[1:]]
        if width := array[0].nbytes:
            buffer = pa.py_buffer(np.ascontiguousarray(array))
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, buffer])
    batch = pa.record_batch(columns).replace_schema_metadata({"shapes": json.dumps(shapes)})
    with (
        writing(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_chunk(path: Location) -> Arrays:
    """The arrays of a chunk file, mapped read-only."""
    with reading(path) as local, pa.memory_map(str(local)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    shapes = json.loads(batch.schema.metadata[b"shapes"])

    def column(name: str) -> np.ndarray:
        dtype, *shape = shapes[name]
        if name not in batch.schema.names:
            return np.empty((batch.num_rows, *shape), dtype)
        return np.frombuffer(batch.column(name).buffers()[1], dtype=dtype).reshape(batch.num_rows, *shape)

    return column("images"), batch.column("labels").to_numpy(), column("logits")


def stored_chunks(folder: Location) -> list[Location]:
    """Chunk files in order of their ids. Where a compacted file covers others (a crash between), it alone counts."""
    kept: list[Location] = []
    chunks = [path for path in files(folder) if fnmatch(path.name, "[0-9]*.arrow")]
    for path in sorted(chunks, key=lambda p: (chunk_range(p)[0], -chunk_range(p)[1])):
        if not kept or chunk_range(path)[0] >= chunk_range(kept[-1])[1]:
            kept.append(path)
    return kept


def join(chunks: list[Encoded]) -> Encoded:
    """Several chunks as one, copied."""
    return Encoded(*map(torch.cat, zip(*map(columns, chunks), strict=True)))


def joinable(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Runs of small neighbours worth joining, each as the first ids of its chunks.

    A chunk of more than half of `COMPACT` stays as it is: it would be copied again for little.

    `spans`: (first id, number of samples) of chunks, in order.
    """
    runs: list[list[tuple[int, int]]] = [[]]
    full: list[list[tuple[int, int]]] = []
    for start, count in spans:
        run = runs[-1]
        fits = sum(n for _, n in run) + count <= COMPACT
        if run and (start != sum(run[-1]) or not fits or count > COMPACT // 2):
            full += [run] * (not fits)
            runs.append(run := [])
        if count <= COMPACT // 2:
            run.append((start, count))
    return [[start for start, _ in run] for run in runs if len(run) >= JOIN_FROM or (len(run) > 1 and run in full)]


def duplicate(source: Location, target: Location) -> None:
    """Let `target` be another name of a file that nobody will write to, or a copy where that cannot be."""
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            return os.link(source, target)
    with reading(source) as local, writing(target) as partial:
        shutil.copyfile(local, partial)
