"""Files of chunks: arrays of samples with consecutive ids, in Arrow's IPC format, named after their ids.

Also the rule by which small chunks are joined.

Letters: N samples, C channels, H W height and width, K classes. PyTorch is not imported: the processes that put chunks
into the object stores of a cluster do without it.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa

from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import Location, files, reading, writing

log = logging.getLogger(__name__)
COMPACT = 4096
"""Largest number of samples of a joined chunk (our choice: 12 MiB of 32x32 colour images)."""
JOIN_FROM = 16
"""Least number of adjacent small chunks that are joined, unless fewer fill a chunk; samples of typical rounds are then
copied once or twice (our choice)."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, labels and logits of an `Encoded` as numpy arrays, for transfer between processes."""


class MissingSamplesError(ValueError):
    """Chunks that a checkpoint refers to are missing: the trial can only start again."""


def chunk_path(folder: Location, start: int, stop: int) -> Location:
    """Return the file of the chunk with ids start..stop-1."""
    return folder / f"{start:010d}-{stop:010d}.arrow"


def chunk_range(path: Location) -> tuple[int, int]:
    """Return (start, stop) from a chunk's file name."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def write_chunk(path: Location, arrays: Arrays, *, durable: bool = False) -> None:
    """Write one Arrow IPC file with one record batch, atomically. Logits (N, 0) have no column.

    `durable`: see `storage.writing`.
    """
    wide = {"images": arrays[0], "logits": arrays[2]}
    columns, shapes = {}, {}
    if arrays[1].ndim > 1:
        wide["labels"] = arrays[1]
    else:
        columns["labels"] = pa.array(arrays[1], pa.int64())
    for name, array in wide.items():
        shapes[name] = [str(array.dtype), *array.shape[1:]]
        if width := array[0].nbytes:
            buffer = pa.py_buffer(np.ascontiguousarray(array))
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, buffer])
    batch = pa.record_batch(columns).replace_schema_metadata({"shapes": json.dumps(shapes)})
    with (
        writing(path, durable=durable) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_chunk(path: Location) -> Arrays:
    """Return the arrays of a chunk file, memory-mapped read-only."""
    with reading(path) as local, pa.memory_map(str(local)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    shapes = json.loads(batch.schema.metadata[b"shapes"])

    def column(name: str) -> np.ndarray:
        dtype, *shape = shapes[name]
        if name not in batch.schema.names:
            return np.empty((batch.num_rows, *shape), dtype)
        return np.frombuffer(batch.column(name).buffers()[1], dtype=dtype).reshape(batch.num_rows, *shape)

    labels = column("labels") if "labels" in shapes else batch.column("labels").to_numpy()
    return column("images"), labels, column("logits")


def read_stored(folder: Location) -> Iterator[tuple[int, int, Arrays]]:
    """Yield (first id, last id + 1, arrays) of the stored chunks, in order.

    A damaged file, which a power loss can leave, is deleted with a log line; its samples are then missing.
    """
    for path in stored_chunks(folder):
        try:
            arrays = read_chunk(path)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            log.info(f"{path} is damaged ({first_line(error)}); deleted")
            path.unlink(missing_ok=True)
            continue
        yield *chunk_range(path), arrays


def stored_chunks(folder: Location) -> list[Location]:
    """Return the chunk files in order of their ids.

    If a compacted file covers others, as after a crash during compaction, only the compacted file counts.
    """
    kept: list[Location] = []
    chunks = [path for path in files(folder) if fnmatch(path.name, "[0-9]*.arrow")]
    for path in sorted(chunks, key=lambda p: (chunk_range(p)[0], -chunk_range(p)[1])):
        if not kept or chunk_range(path)[0] >= chunk_range(kept[-1])[1]:
            kept.append(path)
    return kept


def duplicate(source: Location, target: Location) -> None:
    """Make `target` a hard link of a file that nobody writes to, or a copy if a link is impossible."""
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            return os.link(source, target)
    with reading(source) as local, writing(target) as partial:
        shutil.copyfile(local, partial)


def joinable(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return runs of adjacent small chunks that are worth joining, each as the first ids of its chunks.

    A chunk of more than half of `COMPACT` is left alone: joining it would copy many samples for little gain.

    `spans`: (first id, number of samples) of the chunks, in order.
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
