"""Where remembered samples lie: chunks of them, their Arrow files, a table to gather from by id, and the store of all.

What is kept and what is drawn is the memory's policy; a store only holds rows. An id is the running number of a sample
in its store; a chunk holds consecutive ids, and its file is named by them.
Letters: N samples, M chunks, C channels, H W height and width, K classes.
"""

import contextlib
import json
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from condkd_ray.core.samples import Codec, Encoded, Samples
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


class ChunkTable:
    """Chunks by first id, gathered from by id. Chunks may be views of shared memory; gathering always copies."""

    def __init__(self) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._index: _Index | None = None

    def put(self, start: int, chunk: Encoded) -> None:
        """Add the chunk whose first id is `start`, or replace the one there."""
        self._chunks[start] = Encoded(*(column.contiguous() for column in columns(chunk)))
        self._index = None

    def remove(self, start: int) -> None:
        """Forget the chunk whose first id is `start`."""
        del self._chunks[start]
        self._index = None

    def items(self) -> list[tuple[int, Encoded]]:
        """(first id, chunk) in order."""
        return sorted(self._chunks.items(), key=lambda item: item[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample; 0 where there is none."""
        return next((chunk.num_bytes // len(chunk) for chunk in self._chunks.values()), 0)

    def check(self, ids: Tensor) -> None:
        """Raise `KeyError` where no chunk holds one of `ids` (N,)."""
        self._indexed().locate(ids.cpu().numpy())

    def gather(self, ids: Tensor) -> Encoded:
        """Copies of the samples `ids` (N,), in that order. Raises `KeyError` for an id no chunk holds."""
        index, wanted = self._indexed(), ids.cpu().numpy()
        return index.rows.gather(index.locate(wanted), wanted)

    def _indexed(self) -> "_Index":
        # Made when it is asked for: a refresh changes many chunks at once.
        if self._index is None:
            self._index = _Index(self.items())
        return self._index


class _Index:
    """Where each id lies, in a table as it is now."""

    def __init__(self, items: list[tuple[int, Encoded]]) -> None:
        self._starts = np.array([start for start, _ in items], np.int64)
        # One more in front, for ids before the first chunk: nothing is held there.
        self._stops = np.array([np.iinfo(np.int64).min, *(start + len(chunk) for start, chunk in items)])
        self._chunks = [chunk for _, chunk in items]

    def locate(self, ids: np.ndarray) -> np.ndarray:
        """Which chunk, counted in order, holds each of `ids` (N,). Raises `KeyError` for an id no chunk holds."""
        which = self._starts.searchsorted(ids, "right") - 1
        lost = ids >= self._stops[which + 1]
        if lost.any():
            raise KeyError(f"no chunk holds sample {ids[lost][0]}")
        return which

    @cached_property
    def rows(self) -> "Spanned | Parted":
        """All samples. Raises `KeyError` where there is no chunk."""
        if not self._chunks:
            raise KeyError("no chunk holds anything")
        kind = Spanned if self._chunks[0].images.device.type == "cpu" else Parted
        return kind(self._starts, self._chunks)


class Spanned:
    """Samples of chunks in this machine's memory, gathered by one native call a column, however many chunks there are.

    They lie apart, so the call is given all of the memory from the lowest to the highest as one tensor, whose position
    i is the row that would begin i elements behind the lowest chunk. Positions that begin no row of a chunk are never
    read. One call a chunk would take several times as long where a draw meets hundreds of them.
    """

    def __init__(self, starts: np.ndarray, chunks: list[Encoded]) -> None:
        self._chunks = chunks  # keeps their memory
        by_column = list(zip(*map(columns, chunks), strict=True))
        firsts, self._rows = zip(*map(_span, by_column), strict=True)
        self._steps = np.array([[parts[0][0].numel()] for parts in by_column])
        # By column and chunk: the position at which id 0 would lie if the chunk began with it.
        self._origins = np.stack(firsts) - self._steps * starts

    def gather(self, which: np.ndarray, ids: np.ndarray) -> Encoded:
        """Copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        places = torch.from_numpy(self._origins.take(which, 1) + self._steps * ids)
        return Encoded(*(rows.index_select(0, place) for rows, place in zip(self._rows, places, strict=True)))


def _span(parts: Sequence[Tensor]) -> tuple[np.ndarray, Tensor]:
    """The positions (M,) at which `parts` begin in a tensor of all memory that they span, and that tensor."""
    if not parts[0].numel():
        # Logits that are not there take no memory, and have no address.
        return np.zeros(len(parts), np.int64), parts[0][:1]
    addresses = np.array([part.data_ptr() for part in parts])
    lowest = parts[int(addresses.argmin())].numpy()
    firsts, step = (addresses - addresses.min()) // lowest.itemsize, lowest[0].size
    last = max(int(first) + step * (len(part) - 1) for first, part in zip(firsts, parts, strict=True))
    strides = (lowest.itemsize, *lowest.strides[1:])
    rows = np.lib.stride_tricks.as_strided(lowest, (last + 1, *lowest.shape[1:]), strides)
    return firsts, torch.from_numpy(rows)


class Parted:
    """Samples of chunks on another device, gathered chunk by chunk."""

    def __init__(self, starts: np.ndarray, chunks: list[Encoded]) -> None:
        self._starts, self._chunks = starts, chunks

    def gather(self, which: np.ndarray, ids: np.ndarray) -> Encoded:
        """Copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        device, order = self._chunks[0].images.device, which.argsort(kind="stable")
        met, counts = np.unique(which, return_counts=True)
        rows = torch.from_numpy((ids - self._starts[which])[order]).to(device)
        parts = rows.split(counts.tolist()) if len(met) else ()
        taken = [self._chunks[i][part] for i, part in zip(met, parts, strict=True)]
        back = torch.from_numpy(order.argsort()).to(device)
        return join(taken or [self._chunks[0][:0]])[back]


class MissingSamplesError(ValueError):
    """Chunks that a checkpoint refers to are not there: the trial can only start anew."""


class LiveIds:
    """Classes and life of the ids given out so far, five bytes each. An id that no chunk ever covered is dead."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        # With room behind them, so that a round does not copy all: `_resize`.
        self._all_classes = torch.empty(0, dtype=torch.int32)
        self._all_live = torch.empty(0, dtype=torch.bool)
        self._resize(0)

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        return len(self._live)

    @property
    def num_live(self) -> int:
        """Ids not dropped."""
        return int(self._live.sum())

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live ids of each class. Those of which the teacher has not been asked count nowhere."""
        # One place further on, so that UNLABELLED, -1, has one too.
        return torch.bincount(self._classes[self._live] + 1, minlength=self._num_classes + 1)[1:]

    def cover(self, start: int, classes: Tensor) -> None:
        """A chunk with `classes` (n,) lies at the ids from `start`: new ids live, known ones are as alive as before."""
        known, stop = self.num_ids, start + len(classes)
        self._resize(max(known, stop))
        self._classes[start:stop] = classes.cpu().int()
        self._live[max(start, known) : stop] = True

    def drop(self, ids: Tensor) -> None:
        """Let `ids` die; ids unknown or dead already are passed over."""
        ids = ids.cpu()
        self._live[ids[(ids >= 0) & (ids < self.num_ids)]] = False

    def any_live(self, start: int, count: int) -> bool:
        """Whether one of the `count` ids from `start` lives."""
        return bool(self._live[start : start + count].any())

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Become as at a checkpoint: `num_ids` given out, of them exactly `live` alive."""
        self._resize(num_ids)
        self._live[:] = False
        self._live[live.cpu()] = True

    def _resize(self, num_ids: int) -> None:
        known = len(self._all_live)
        if num_ids > known:
            room = max(num_ids, known + known // 4) - known
            self._all_classes = torch.cat([self._all_classes, self._all_classes.new_zeros(room)])
            self._all_live = torch.cat([self._all_live, self._all_live.new_zeros(room)])
        self._all_live[num_ids:] = False
        self._classes, self._live = self._all_classes[:num_ids], self._all_live[:num_ids]


class Store(ABC):
    """Append-only rows with running ids, in chunks. Samples come back as encoded: uint8 or float16 images.

    Logits, float16, come back where the codec has them and the samples came with them, otherwise as (B, 0). Where the
    chunks lie is left to the subclasses; all of them read from a table of chunks and keep account of the ids that live.
    """

    def __init__(self, codec: Codec, num_classes: int, device: str | torch.device = "cpu") -> None:
        self.codec = codec
        self.device = torch.device(device)
        self._table = ChunkTable()
        self._ids = LiveIds(num_classes)

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        return self._ids.num_ids

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live samples of each class, as the teacher sees them; without logits they count nowhere."""
        return self._ids.class_counts

    @property
    def num_bytes(self) -> int:
        """Bytes of the live samples, encoded. Chunks with dead ones among them take somewhat more."""
        return self._ids.num_live * self._table.row_bytes

    def append(self, samples: Samples) -> Tensor:
        """Keep a round's samples as one chunk; their ids (B,), consecutive, on the CPU."""
        start = self.num_ids
        if len(samples):
            self._append(start, samples)
        return torch.arange(start, start + len(samples))

    def gather(self, ids: Tensor) -> Samples:
        """Decoded copies of the samples `ids`, in that order, on the device. Raises `KeyError` for an unknown id."""
        return self.codec.decode(moved(self._table.gather(ids), self.device))

    def drop(self, ids: Tensor) -> None:
        """Say that no memory refers to `ids` any more."""
        self._ids.drop(ids)

    @abstractmethod
    def commit(self) -> None:
        """A checkpoint has been written: what was dropped before it may now really go."""

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Become as at a checkpoint: forget ids from `num_ids` on (they will be made again), drop all but `live`.

        Raises `MissingSamplesError` where one of `live` is not there.
        """
        self._truncate(num_ids)
        try:
            self._table.check(live)
        except KeyError as error:
            message = f"a checkpoint after {num_ids} samples needs what is gone: {error.args[0]}"
            raise MissingSamplesError(message) from None
        self._ids.restore(num_ids, live)

    def _returned(self, chunk: Encoded) -> Encoded:
        """A chunk from a file or the pool as this store gives it back: others may have stored logits with it.

        Raises `MissingSamplesError` where it lacks logits that this store gives back.
        """
        if not self.codec.logits:
            return chunk.without_logits()
        if not chunk.asked:
            raise MissingSamplesError("a chunk was stored without the teacher's logits, which this trial reads")
        return chunk

    @abstractmethod
    def _append(self, start: int, samples: Samples) -> None:
        """Keep samples, encoded, as a chunk, and enter it into the table and among the live ids."""

    @abstractmethod
    def _truncate(self, num_ids: int) -> None:
        """Remove all chunks of ids from `num_ids` on, for good."""

    def _dead(self) -> list[tuple[int, Encoded]]:
        """(First id, chunk) of chunks of which nothing lives."""
        return [(start, c) for start, c in self._table.items() if not self._ids.any_live(start, len(c))]


class LocalStore(Store):
    """A store in this process, on the samples' device; with a `folder`, each chunk is a file there as well.

    The files serve resuming alone: a checkpoint never holds images. See `Store` for the verbs.
    """

    def __init__(self, codec: Codec, num_classes: int, folder: Path | None = None, device: str | torch.device = "cpu"):
        super().__init__(codec, num_classes, device)
        self._folder = folder
        for path in stored_chunks(folder) if folder else []:
            self._put(chunk_range(path)[0], self._returned(from_arrays(read_chunk(path))))

    def _append(self, start: int, samples: Samples) -> None:
        encoded = self.codec.encode(samples)
        if self._folder is not None:
            write_chunk(chunk_path(self._folder, start, start + len(encoded)), to_arrays(encoded))
        self._put(start, encoded)

    def commit(self) -> None:
        """Free chunks of which nothing lives, then join small neighbours in memory."""
        for start, chunk in self._dead():
            self._remove(start, chunk)
        # Files stay one a round; only with a folder must a chunk in memory equal a file, so join just without one.
        if self._folder is None:
            chunks = dict(self._table.items())
            for run in joinable([(start, len(chunk)) for start, chunk in chunks.items()]):
                for start in run:
                    self._table.remove(start)
                self._table.put(run[0], join([chunks[start] for start in run]))

    def _truncate(self, num_ids: int) -> None:
        for start, chunk in self._table.items():
            if start >= num_ids:
                self._remove(start, chunk)

    def _put(self, start: int, encoded: Encoded) -> None:
        self._table.put(start, moved(encoded, self.device))
        self._ids.cover(start, encoded.classes)

    def _remove(self, start: int, chunk: Encoded) -> None:
        self._table.remove(start)
        if self._folder is not None:
            chunk_path(self._folder, start, start + len(chunk)).unlink(missing_ok=True)
