"""Stores of samples: their chunks, the chunks' Arrow files, and the ids that are still in use.

What is kept and what is drawn is the memory's policy; a store only holds rows. An id is the running number of a sample
in its store; a chunk holds consecutive ids, and its file is named after them. Letters: N samples, M chunks, C channels,
H W height and width, K classes.
"""

import contextlib
import json
import logging
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from condkd_ray.core.errors import first_line
from condkd_ray.core.samples import Codec, Encoded, Samples, pixel_counts
from condkd_ray.core.storage import Location, files, reading, writing
from condkd_ray.methods.memory.chunk_table import columns
from condkd_ray.methods.memory.device_rows import rows_on

log = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, labels and logits of an `Encoded` as numpy arrays, for transfer between processes."""


def to_arrays(encoded: Encoded) -> Arrays:
    """Return the tensors as numpy arrays on the CPU."""
    return tuple(column.detach().cpu().contiguous().numpy() for column in columns(encoded))  # type: ignore[return-value]


def from_arrays(arrays: Arrays) -> Encoded:
    """Return tensors over the same memory. Tensors over read-only arrays must not be written to; gathering copies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Encoded(*map(torch.from_numpy, arrays))


def chunk_path(folder: Location, start: int, stop: int) -> Location:
    """Return the file of the chunk with ids start..stop-1."""
    return folder / f"{start:010d}-{stop:010d}.arrow"


def chunk_range(path: Location) -> tuple[int, int]:
    """Return (start, stop) from a chunk's file name."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def write_chunk(path: Location, arrays: Arrays) -> None:
    """Write one Arrow IPC file with one record batch, atomically. Logits (N, 0) have no column."""
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
        writing(path) as partial,
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


class MissingSamplesError(ValueError):
    """Chunks that a checkpoint refers to are missing: the trial can only start again."""


class LiveIds:
    """The class of each id given out so far, and whether it is live (in use), in five bytes per id.

    In segmentation, the number of pixels of each class instead, in four bytes per class. An id that no chunk ever
    covered is not live.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        # With spare room at the end, so that a round does not copy all: see `_resize`.
        self._all_classes = torch.empty(0, dtype=torch.int32)
        self._all_live = torch.empty(0, dtype=torch.bool)
        self._resize(0)

    @property
    def num_ids(self) -> int:
        """Number of ids given out so far."""
        return len(self._live)

    @property
    def num_live(self) -> int:
        """Number of ids not dropped."""
        return int(self._live.sum())

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live ids of each class. Ids whose samples have no teacher logits are not counted.

        In segmentation: pixels of each class in the live samples.
        """
        if self._classes.ndim > 1:
            return self._classes[self._live].sum(0)
        # Shifted by one place, so that UNLABELLED, -1, has one too.
        return torch.bincount(self._classes[self._live] + 1, minlength=self._num_classes + 1)[1:]

    def cover(self, start: int, classes: Tensor) -> None:
        """Register a chunk with `classes` (n,), in segmentation (n, H, W), at the ids from `start`.

        New ids become live, known ones keep their status.
        """
        if classes.ndim > 1:
            classes = pixel_counts(classes, self._num_classes)
            if self._all_classes.ndim == 1:
                self._all_classes = self._all_classes[:, None].repeat(1, self._num_classes)
        known, stop = self.num_ids, start + len(classes)
        self._resize(max(known, stop))
        self._classes[start:stop] = classes.cpu().int()
        self._live[max(start, known) : stop] = True

    def drop(self, ids: Tensor) -> None:
        """Mark `ids` as not live; unknown ids are ignored."""
        ids = ids.cpu()
        self._live[ids[(ids >= 0) & (ids < self.num_ids)]] = False

    def any_live(self, start: int, count: int) -> bool:
        """Return whether one of the `count` ids from `start` is live."""
        return bool(self._live[start : start + count].any())

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Restore the state of a checkpoint: `num_ids` ids were given out, and exactly the ids `live` are live."""
        self._resize(num_ids)
        self._live[:] = False
        self._live[live.cpu()] = True

    def _resize(self, num_ids: int) -> None:
        known = len(self._all_live)
        if num_ids > known:
            room = max(num_ids, known + known // 4) - known
            more = self._all_classes.new_zeros(room, *self._all_classes.shape[1:])
            self._all_classes = torch.cat([self._all_classes, more])
            self._all_live = torch.cat([self._all_live, self._all_live.new_zeros(room)])
        self._all_live[num_ids:] = False
        self._classes, self._live = self._all_classes[:num_ids], self._all_live[:num_ids]


class Store(ABC):
    """Append-only rows with running ids, in chunks. Images are returned as they were encoded: from uint8 or float16.

    Logits (float16) are returned if the codec and the samples have them, otherwise as (B, 0). Subclasses decide where
    the chunks are; each reads from a table of chunks and records which ids are live.

    `device_limit`: bytes of samples on a GPU, see `rows_on`.
    """

    def __init__(
        self,
        codec: Codec,
        num_classes: int,
        device: str | torch.device = "cpu",
        *,
        device_limit: int | None = None,
    ) -> None:
        self.codec = codec
        self.device = torch.device(device)
        self.table = rows_on(self.device, device_limit)
        """Table of the samples; only the store itself changes it."""
        self._ids = LiveIds(num_classes)

    @property
    def num_ids(self) -> int:
        """Number of ids given out so far."""
        return self._ids.num_ids

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live samples of each class, by the teacher's logits; samples without logits are not counted.

        In segmentation: pixels of each class in the live samples.
        """
        return self._ids.class_counts

    @property
    def num_bytes(self) -> int:
        """Bytes of the live samples, encoded. Chunks that contain dropped samples take somewhat more."""
        return self._ids.num_live * self.table.row_bytes

    def append(self, samples: Samples) -> Tensor:
        """Store a round's samples as one chunk; returns their ids (B,), consecutive, on the CPU."""
        start = self.num_ids
        if len(samples):
            self._append(start, samples)
        return torch.arange(start, start + len(samples))

    def gather(self, ids: Tensor) -> Samples:
        """Return decoded copies of the samples `ids` (B,), in that order, on the device.

        `ids` on the CPU are looked up there; raises `KeyError` for an unknown id. Those on the device are looked up
        there, without a wait of the CPU, unless some samples are beyond the store's `device_limit`; an unknown id is
        then an error of the device.
        """
        return self.codec.decode(self.table.gather(ids))

    def drop(self, ids: Tensor) -> None:
        """Record that no memory refers to `ids` any more."""
        self._ids.drop(ids)

    @abstractmethod
    def commit(self) -> None:
        """Free what was dropped before the checkpoint that has just been written."""

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Restore the state of a checkpoint: remove the ids from `num_ids` on and drop all others but `live`.

        The removed ids will be made again. Raises `MissingSamplesError` if one of `live` is missing.
        """
        self._truncate(num_ids)
        try:
            self.table.check(live)
        except KeyError as error:
            message = f"a checkpoint after {num_ids} samples refers to missing samples: {error.args[0]}"
            raise MissingSamplesError(message) from None
        self._ids.restore(num_ids, live)

    def _returned(self, chunk: Encoded) -> Encoded:
        """Return a chunk from a file or the pool with or without logits, as this store's codec requires.

        Other trials may have stored logits with it. Raises `MissingSamplesError` if it lacks logits that are required.
        """
        if not self.codec.logits:
            return chunk.without_logits()
        if not chunk.has_logits:
            raise MissingSamplesError("a chunk was stored without the teacher's logits, which this trial reads")
        return chunk

    @abstractmethod
    def _append(self, start: int, samples: Samples) -> None:
        """Encode and store samples as a chunk, and enter it into the table and the live ids."""

    @abstractmethod
    def _truncate(self, num_ids: int) -> None:
        """Remove all chunks of ids from `num_ids` on permanently."""

    def _dead(self) -> list[tuple[int, int]]:
        """Return (first id, number of samples) of chunks without live samples."""
        return [(start, count) for start, count in self.table.spans() if not self._ids.any_live(start, count)]


class LocalStore(Store):
    """A store in this process, on the samples' device; with a `folder`, each chunk is also a file there.

    A trial needs the files only to resume, because a checkpoint contains no images. See `Store` for the methods.
    """

    def __init__(
        self,
        codec: Codec,
        num_classes: int,
        folder: Path | None = None,
        device: str | torch.device = "cpu",
        *,
        device_limit: int | None = None,
    ) -> None:
        super().__init__(codec, num_classes, device, device_limit=device_limit)
        self._folder = folder
        for start, _, arrays in read_stored(folder) if folder else []:
            self._put(start, self._returned(from_arrays(arrays)))

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        if self._folder is None:
            self._put(start, encoded)
            return
        arrays = to_arrays(encoded)
        write_chunk(chunk_path(self._folder, start, start + len(encoded)), arrays)
        self._put(start, from_arrays(arrays), encoded)

    def commit(self) -> None:
        """Free chunks without live samples, then join adjacent small ones in memory."""
        for start, count in self._dead():
            self._remove(start, count)
        # With a folder, each chunk in memory must equal a file, one per round; so chunks are joined only without one.
        if self._folder is None:
            self.table.compact()

    def _truncate(self, num_ids: int) -> None:
        for start, count in self.table.spans():
            if start >= num_ids:
                self._remove(start, count)

    def _put(self, start: int, chunk: Encoded, near: Encoded | None = None) -> None:
        self.table.put(start, chunk, near)
        self._ids.cover(start, chunk.classes)

    def _remove(self, start: int, count: int) -> None:
        self.table.remove(start)
        if self._folder is not None:
            chunk_path(self._folder, start, start + count).unlink(missing_ok=True)
