"""The samples of a trial on the device that draws them: rows of one tensor per column, independent of their chunks.

A chunk is copied there once, in parallel with the device's computations. A draw is one `index_select` per column; row
numbers are looked up by id, on the CPU, or on the device if the ids are there. A draw neither reads from the device nor
waits for it, except when ids on the device may belong to samples in CPU memory. Letters: N samples, R rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.device import CopyStream, sent
from condkd_ray.core.method import require
from condkd_ray.core.samples import Encoded
from condkd_ray.methods.memory.chunk_table import ChunkTable, columns, moved

GROWTH = 1.5
"""Least factor by which the room grows (our choice): on average a sample is copied at most twice more. During growth
the old rows exist beside the new ones."""
SHARE = 0.25
"""Default share of the trial's part of the device memory that its samples may take (our choice)."""
NO_ROW, ON_HOST = -1, -2
"""Row number of an id that no chunk holds, and of an id whose sample is in CPU memory."""


def quarter(total: int, part: float = 1.0) -> int:
    """Return the default limit of samples in bytes, for a trial that has this `part` of a device of `total` bytes."""
    return int(SHARE * min(part, 1.0) * total)


def default_limit(device: torch.device, part: float = 1.0) -> int:
    """Return `quarter` of a CUDA device."""
    return quarter(torch.cuda.get_device_properties(device).total_memory, part)


def most_bytes(samples: int, limit: int) -> int:
    """Return the most bytes that rows take on a device while growing to `samples` bytes, with at most `limit` there.

    There is room for more rows than are held, and while rows are copied to larger room the old one, which was full,
    still exists.
    """
    return int(min(GROWTH * samples, limit) + min(samples, limit))


class _Chunk(NamedTuple):
    """Number of samples, and the rows (R,) of the first of them; the others are in CPU memory."""

    size: int
    rows: np.ndarray


class DeviceRows:
    """A table like `ChunkTable`, with the samples on `device`.

    `limit`: bytes of samples on the device. Samples beyond it are in CPU memory, from where their rows are gathered
    into pinned memory and sent in parallel with the device's computations. The oldest samples stay on the device, and
    no sample moves to or from CPU memory later (our choice): under uniform draws it does not matter which samples are
    where, and nothing has to be copied back. The room of removed chunks is used for the next chunk.

    Nothing is prefetched, because the ids are known only when they are drawn. But the CPU waits for no copy, and each
    copy uses its own pinned memory: the rows of the next draw are gathered while those of the last one are being
    copied.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._device, self._limit = device, limit
        self._copies = CopyStream(device)
        self._columns: Encoded | None = None
        self._free = np.empty(0, np.int64)
        self._chunks: dict[int, _Chunk] = {}
        # The row of each id so far, with spare room at the end.
        self._row_of = np.full(1, NO_ROW, np.int32)
        # A copy of `_row_of` on the device; None if it has changed since the last draw there.
        self._device_row_of: Tensor | None = None
        self.host = ChunkTable(pinned=device.type == "cuda")
        """Table of the samples beyond the limit, in CPU memory."""

    @torch.no_grad()
    def put(self, start: int, chunk: Encoded, near: Encoded | None = None) -> None:
        """Add the chunk whose first id is `start`, or replace the chunk there. It may be on the CPU or on the device.

        `near`: the same samples on the device, if they are there too. Then only the samples beyond the limit are kept
        from `chunk`, in their present memory; without it they are copied to the device.

        The caller must not write to either afterwards: they may be read after this method returns, and parts of them
        may be kept. So they must not be an output of a step that is replayed as a graph
        (`core.compilation.begin_step`), but a copy.
        """
        if start in self._chunks:
            self.remove(start)
        rows = self._reserve(chunk)
        on_device = len(rows)
        if on_device:
            self._fill(rows, (chunk if near is None else near)[slice(on_device)])
        if on_device < len(chunk):
            self.host.put(start + on_device, moved(chunk[slice(on_device, None)], "cpu"))
        self._chunks[start] = _Chunk(len(chunk), rows)
        self._mark(start, self._chunks[start])

    def remove(self, start: int) -> None:
        """Remove the chunk whose first id is `start`. Raises `KeyError` if there is none."""
        size, rows = self._chunks.pop(start)
        self._device_row_of = None
        self._row_of[start : start + size] = NO_ROW
        self._free = np.concatenate([rows, self._free])
        if len(rows) < size:
            self.host.remove(start + len(rows))

    def compact(self) -> None:
        """Do nothing: the duration of a draw does not depend on the number of chunks."""

    def spans(self) -> list[tuple[int, int]]:
        """Return (first id, number of samples) of each chunk, in order."""
        return sorted((start, chunk.size) for start, chunk in self._chunks.items())

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample; 0 if there is none."""
        return 0 if self._columns is None or not self._chunks else self._columns.num_bytes // len(self._columns)

    @property
    def num_rows(self) -> int:
        """Number of samples for which the device has room at present."""
        return 0 if self._columns is None else len(self._columns)

    def check(self, ids: Tensor) -> None:
        """Raise `KeyError` if no chunk holds one of `ids` (N,)."""
        self.locate(ids.cpu().numpy())

    def gather(self, ids: Tensor) -> Encoded:
        """Return copies on the device of the samples `ids` (N,), in that order.

        Raises `KeyError` for an id that no chunk holds. For ids on the device it does so only if samples are beyond the
        limit, since only then the CPU reads these ids and waits for them.
        """
        if ids.device.type != "cpu" and not self.host.spans():
            return self._picked(self.locate_on_device(ids))
        wanted = ids.cpu().numpy()
        rows = self.locate(wanted)
        on_host = np.flatnonzero(rows == ON_HOST)
        # Any valid row stands in for them; `_overwrite` replaces it.
        rows[on_host] = 0
        found = self._picked(sent(torch.from_numpy(rows), self._device))
        if len(on_host):
            self._overwrite(found, on_host, torch.from_numpy(wanted[on_host]))
        return found

    def _picked(self, rows: Tensor) -> Encoded:
        """Return copies of these rows (N,)."""
        if self._columns is None or not self._chunks:
            raise KeyError("no chunk holds anything")
        self._copies.awaited()
        return Encoded(*(column.index_select(0, rows) for column in columns(self._columns)))

    def locate_on_device(self, ids: Tensor) -> Tensor:
        """Return the row of each of `ids` (N,), which are on the device."""
        if self._device_row_of is None:
            self._device_row_of = sent(torch.from_numpy(self._row_of), self._device)
        return self._device_row_of.index_select(0, ids)

    def _overwrite(self, found: Encoded, at: np.ndarray, ids: Tensor) -> None:
        """Write the samples `ids`, which are in CPU memory, to these positions of `found`."""
        with self._copies.copying(after_all=False):
            positions = sent(torch.from_numpy(at), self._device)
            parts = moved(self.host.gather(ids), self._device)
        self._copies.awaited()
        for made in (positions, *columns(parts)):
            self._copies.keep_until_used(made)
        for column, part in zip(columns(found), columns(parts), strict=True):
            column.index_copy_(0, positions, part)

    def locate(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of each of `ids` (N,) int64, or `ON_HOST`. Raises `KeyError` for an id that no chunk holds."""
        outside = (ids < 0) | (ids >= len(self._row_of))
        rows = np.where(outside, NO_ROW, self._row_of.take(ids, mode="clip")).astype(np.int64)
        missing = rows == NO_ROW
        if missing.any():
            raise KeyError(f"no chunk holds sample {ids[missing][0]}")
        return rows

    def _mark(self, start: int, chunk: _Chunk) -> None:
        self._device_row_of = None
        known, on_device, stop = len(self._row_of), start + len(chunk.rows), start + chunk.size
        if stop > known:
            room = np.full(max(stop, known + known // 4) - known, NO_ROW, np.int32)
            self._row_of = np.concatenate([self._row_of, room])
        self._row_of[start:on_device] = chunk.rows
        self._row_of[on_device:stop] = ON_HOST

    def _reserve(self, chunk: Encoded) -> np.ndarray:
        """Return free rows for the samples of `chunk`; fewer if the limit leaves no room."""
        if len(chunk) > len(self._free):
            self._grow(len(chunk) - len(self._free), chunk)
        rows, self._free = np.split(self._free, [len(chunk)])
        return rows

    def _grow(self, missing_rows: int, like: Encoded) -> None:
        """Make room for at least `missing_rows` more rows of this kind, within the limit."""
        old, held, row = self._columns, self.num_rows, like.num_bytes // len(like)
        require(self._limit >= row, "device pool limit", f"{self._limit} bytes", f"at least the {row} of a sample")
        size = min(self._limit // row, max(held + missing_rows, int(GROWTH * held)))
        if size == held:
            return
        shapes = [(size, *column.shape[1:]) for column in columns(like)]
        made = zip(columns(like), shapes, strict=True)
        new = Encoded(*(torch.empty(shape, dtype=column.dtype, device=self._device) for column, shape in made))
        if old is not None:
            self._copies.awaited()
            for column, before in zip(columns(new), columns(old), strict=True):
                column[:held] = before
        self._columns, self._free = new, np.concatenate([self._free, np.arange(held, size)])

    def _fill(self, rows: np.ndarray, chunk: Encoded) -> None:
        """Copy a chunk into these rows (R,)."""
        assert self._columns is not None
        with self._copies.copying(after_all=True):
            targets = sent(torch.from_numpy(rows), self._device)
            for column, part in zip(columns(self._columns), columns(chunk), strict=True):
                self._copies.keep_until_copied(column)
                self._copies.keep_until_copied(part)
                column.index_copy_(0, targets, sent(part, self._device))


Rows = ChunkTable | DeviceRows
"""Table of a store's samples."""


def rows_on(device: torch.device, limit: int | None = None) -> Rows:
    """Return an empty table for samples drawn on `device`, where they take at most `limit` bytes.

    On a CPU the chunks stay where they are. On a GPU the default limit is `default_limit`. Raises `InputError` for a
    limit on a CPU.
    """
    if device.type == "cpu":
        require(limit is None, "device pool limit on a CPU", f"{limit} bytes", "none, or a GPU")
        return ChunkTable()
    return DeviceRows(device, default_limit(device) if limit is None else limit)
