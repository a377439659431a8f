"""Chunks of encoded samples: the Arrow file of one, and a table of many that gathers by id.

An id is the running number of a sample in its store; a chunk holds consecutive ids, and its file is named by them.
Letters: N samples, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from condkd_ray.disk import naming
from condkd_ray.samples import Encoded

COMPACT = 4096
"""Small chunks next to each other are joined up to this many samples (our choice: 12 MiB of 32x32 colour images) ..."""
JOIN_FROM = 16
"""... where there are so many of them, so that each sample is copied once or twice in all."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, labels, logits of an `Encoded`, as numpy: what crosses process borders."""


def to_arrays(encoded: Encoded) -> Arrays:
    """Tensors to numpy, on the CPU."""
    return tuple(t.detach().cpu().contiguous().numpy() for t in (encoded.images, encoded.labels, encoded.logits))  # type: ignore[return-value]


def from_arrays(arrays: Arrays) -> Encoded:
    """Numpy to tensors over the same memory. Read-only arrays stay so by our care: gather copies, nothing writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images, labels, logits = (torch.from_numpy(array) for array in arrays)
    return Encoded(images, labels, logits)


def moved(encoded: Encoded, device: torch.device) -> Encoded:
    """The same on `device`; not copied where it lies there."""
    return Encoded(encoded.images.to(device), encoded.labels.to(device), encoded.logits.to(device))


def chunk_path(folder: Path, start: int, stop: int) -> Path:
    """File of the chunk with ids start..stop-1."""
    return folder / f"{start:010d}-{stop:010d}.arrow"


def chunk_range(path: Path) -> tuple[int, int]:
    """(start, stop) from a chunk's file name."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def write_chunk(path: Path, arrays: Arrays) -> None:
    """One Arrow IPC file with one record batch, written atomically."""
    columns = [pa.array(arrays[1], pa.int64())]
    for array in (arrays[0], arrays[2]):
        width = array[0].nbytes
        buffer = pa.py_buffer(np.ascontiguousarray(array))
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, buffer]))
    shapes = {
        name: [str(array.dtype), *array.shape[1:]] for name, array in (("images", arrays[0]), ("logits", arrays[2]))
    }
    names = ["labels", "images", "logits"]
    batch = pa.record_batch(columns, names=names).replace_schema_metadata({"shapes": json.dumps(shapes)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_chunk(path: Path) -> Arrays:
    """The arrays of a chunk file, mapped read-only."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    shapes = json.loads(batch.schema.metadata[b"shapes"])

    def column(name: str) -> np.ndarray:
        dtype, *shape = shapes[name]
        return np.frombuffer(batch.column(name).buffers()[1], dtype=dtype).reshape(batch.num_rows, *shape)

    return column("images"), batch.column("labels").to_numpy(), column("logits")


def stored_chunks(folder: Path) -> list[Path]:
    """Chunk files in order of their ids. Where a compacted file covers others (a crash between), it alone counts."""
    kept: list[Path] = []
    for path in sorted(folder.glob("[0-9]*.arrow"), key=lambda p: (chunk_range(p)[0], -chunk_range(p)[1])):
        if not kept or chunk_range(path)[0] >= chunk_range(kept[-1])[1]:
            kept.append(path)
    return kept


class ChunkTable:
    """Chunks by first id, gathered from by id. Chunks may be views of shared memory; gathering always copies."""

    def __init__(self) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._index()

    def put(self, start: int, chunk: Encoded) -> None:
        """Add the chunk whose first id is `start`, or replace the one there."""
        self._chunks[start] = chunk
        self._index()

    def remove(self, start: int) -> None:
        """Forget the chunk whose first id is `start`."""
        del self._chunks[start]
        self._index()

    def _index(self) -> None:
        self._chunks = dict(sorted(self._chunks.items()))
        self._starts = torch.tensor(list(self._chunks), dtype=torch.int64)
        # One more in front, for ids before the first chunk: nothing is held there.
        stops = [start + len(chunk) for start, chunk in self._chunks.items()]
        self._stops = torch.tensor([torch.iinfo(torch.int64).min, *stops])

    def items(self) -> list[tuple[int, Encoded]]:
        """(first id, chunk) in order."""
        return list(self._chunks.items())

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample; 0 where there is none."""
        return next((chunk.num_bytes // len(chunk) for chunk in self._chunks.values()), 0)

    def locate(self, ids: Tensor) -> Tensor:
        """Which chunk, counted in order, holds each of `ids` (n,). Raises `KeyError` for an id no chunk holds."""
        which = torch.bucketize(ids, self._starts, right=True) - 1
        lost = ids[ids >= self._stops[which + 1]]
        if len(lost):
            raise KeyError(f"no chunk holds sample {int(lost[0])}")
        return which

    def gather(self, ids: Tensor) -> Encoded:
        """Copies of the samples `ids` (n,), in that order. Raises `KeyError` for an id no chunk holds."""
        ids, chunks = ids.cpu(), self.items()
        which = self.locate(ids)
        if not chunks:
            raise KeyError("no chunk holds anything")
        parts = [(*chunks[i], (which == i).nonzero().squeeze(1)) for i in which.unique().tolist() or [0]]
        first = parts[0][1]
        if len(parts) == 1:
            return first[(ids - parts[0][0]).to(first.images.device)]
        device = first.images.device
        out = Encoded(*(t.new_empty(len(ids), *t.shape[1:]) for t in (first.images, first.labels, first.logits)))
        for start, chunk, rows in parts:
            taken = chunk[(ids[rows] - start).to(device)]
            rows = rows.to(device)
            for target, source in zip(
                (out.images, out.labels, out.logits), (taken.images, taken.labels, taken.logits), strict=True
            ):
                target.index_copy_(0, rows, source)
        return out


def join(chunks: list[Encoded]) -> Encoded:
    """Several chunks as one, copied."""
    return Encoded(
        torch.cat([c.images for c in chunks]),
        torch.cat([c.labels for c in chunks]),
        torch.cat([c.logits for c in chunks]),
    )


def joinable(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Runs of small neighbours worth joining, each as the first ids of its chunks.

    `spans`: (first id, number of samples) of chunks, in order.
    """
    runs: list[list[tuple[int, int]]] = [[]]
    for start, count in spans:
        run = runs[-1]
        follows = not run or start == sum(run[-1])
        if not follows or sum(n for _, n in run) + count > COMPACT:
            runs.append(run := [])
        run.append((start, count))
    return [[start for start, _ in run] for run in runs if len(run) >= JOIN_FROM]
