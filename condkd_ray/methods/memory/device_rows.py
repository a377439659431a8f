"""The samples of a trial on the device that draws them: rows of one tensor a column, whatever chunks they came in.

A chunk is copied there once, beside what the device computes, and a draw is one `index_select` a column, with row
numbers looked up by id: on the host, or on the device where the ids lie there. Nothing in a draw reads from the device
or waits for it, but where ids on the device may be of samples that lie in the host's memory.
Letters: N samples, R rows.
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
"""By what factor room grows, at least (our choice): a sample is copied twice more at most, on average. While it grows
the old rows lie beside the new ones."""
SHARE = 0.25
"""Of a trial's part of its device's memory: what its samples may take where nobody says (our choice)."""
NOWHERE, BEYOND = -1, -2
"""In the place of a row: no chunk holds the id; its sample lies in the host's memory."""


def quarter(total: int, part: float = 1.0) -> int:
    """Bytes of samples on a device of `total` bytes, of which the trial has this `part`: a quarter of that."""
    return int(SHARE * min(part, 1.0) * total)


def default_limit(device: torch.device, part: float = 1.0) -> int:
    """`quarter` of a CUDA device."""
    return quarter(torch.cuda.get_device_properties(device).total_memory, part)


def most_bytes(samples: int, limit: int) -> int:
    """Most bytes that rows take on a device as they come to hold `samples` bytes, of which `limit` may lie there.

    There is room for more than they hold, and as they are moved to larger room the old one, which was full, is still
    there.
    """
    return int(min(GROWTH * samples, limit) + min(samples, limit))


class _Chunk(NamedTuple):
    """How many samples it has; the rows (R,) of the first of them, the others lie in the host's memory."""

    size: int
    rows: np.ndarray


class DeviceRows:
    """What a `ChunkTable` does, with the samples on `device`.

    `limit`: bytes of samples there. What finds no room lies in the host's memory, from where its rows are gathered into
    pinned memory, and sent beside what the device computes. The oldest samples stay on the device, and none ever moves
    (our choice): under uniform draws it does not matter which lie where, and so nothing is copied back. Room that
    removed chunks leave is the next chunk's.

    Nothing is fetched ahead of a draw: its ids are known only once it is drawn. But the host waits for no copy, and
    each goes out from pinned memory of its own: the next draw's rows are gathered while the last are on their way.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._device, self._limit = device, limit
        self._copies = CopyStream(device)
        self._columns: Encoded | None = None
        self._free = np.empty(0, np.int64)
        self._chunks: dict[int, _Chunk] = {}
        # The row of each id so far, with room behind them.
        self._where = np.full(1, NOWHERE, np.int32)
        # The same on the device, if somebody has asked there since it changed.
        self._where_there: Tensor | None = None
        self._host = ChunkTable(pinned=device.type == "cuda")

    @torch.no_grad()
    def put(self, start: int, chunk: Encoded, near: Encoded | None = None) -> None:
        """Add the chunk whose first id is `start`, or replace the one there. It may lie on the host or on the device.

        `near`: the same samples on the device, where they lie there too. Then only samples beyond the limit are kept of
        `chunk`, in the memory in which they lie; without it they are copied there.

        Nobody may write to either afterwards: they may be read later than this returns, and some of them be kept. So
        they hold no output of a step that is replayed as a graph (`core.compilation.begin_step`), but a copy.
        """
        if start in self._chunks:
            self.remove(start)
        rows = self._reserve(chunk)
        here = len(rows)
        if here:
            self._fill(rows, (chunk if near is None else near)[slice(here)])
        if here < len(chunk):
            self._host.put(start + here, moved(chunk[slice(here, None)], "cpu"))
        self._chunks[start] = _Chunk(len(chunk), rows)
        self._mark(start, self._chunks[start])

    def remove(self, start: int) -> None:
        """Forget the chunk whose first id is `start`. Raises `KeyError` where there is none."""
        size, rows = self._chunks.pop(start)
        self._where_there = None
        self._where[start : start + size] = NOWHERE
        self._free = np.concatenate([rows, self._free])
        if len(rows) < size:
            self._host.remove(start + len(rows))

    def compact(self) -> None:
        """Nothing: a draw takes as long however many chunks there are."""

    def spans(self) -> list[tuple[int, int]]:
        """(first id, number of samples) of each chunk, in order."""
        return sorted((start, chunk.size) for start, chunk in self._chunks.items())

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample; 0 where there is none."""
        return 0 if self._columns is None or not self._chunks else self._columns.num_bytes // len(self._columns)

    @property
    def num_rows(self) -> int:
        """Samples for which there is room on the device as it stands."""
        return 0 if self._columns is None else len(self._columns)

    def check(self, ids: Tensor) -> None:
        """Raise `KeyError` where no chunk holds one of `ids` (N,)."""
        self._locate(ids.cpu().numpy())

    def gather(self, ids: Tensor) -> Encoded:
        """Copies on the device of the samples `ids` (N,), in that order.

        Raises `KeyError` for an id no chunk holds; for one among `ids` on the device only where there are samples
        beyond the limit, as these ids are then read and waited for.
        """
        if ids.device.type != "cpu" and not self._host.spans():
            return self._picked(self._rows_there(ids))
        wanted = ids.cpu().numpy()
        rows = self._locate(wanted)
        beyond = np.flatnonzero(rows == BEYOND)
        # Some row in their place; it is overwritten.
        rows[beyond] = 0
        found = self._picked(sent(torch.from_numpy(rows), self._device))
        if len(beyond):
            self._overwrite(found, beyond, torch.from_numpy(wanted[beyond]))
        return found

    def _picked(self, rows: Tensor) -> Encoded:
        """Copies of these rows (N,)."""
        if self._columns is None or not self._chunks:
            raise KeyError("no chunk holds anything")
        self._copies.awaited()
        return Encoded(*(column.index_select(0, rows) for column in columns(self._columns)))

    def _rows_there(self, ids: Tensor) -> Tensor:
        """The row of each of `ids` (N,) on the device."""
        if self._where_there is None:
            self._where_there = sent(torch.from_numpy(self._where), self._device)
        return self._where_there.index_select(0, ids)

    def _overwrite(self, found: Encoded, at: np.ndarray, ids: Tensor) -> None:
        """Put the samples `ids`, which lie on the host, at these positions of `found`."""
        with self._copies.copying(after_all=False):
            places = sent(torch.from_numpy(at), self._device)
            parts = moved(self._host.gather(ids), self._device)
        self._copies.awaited()
        for made in (places, *columns(parts)):
            self._copies.hand_over(made)
        for column, part in zip(columns(found), columns(parts), strict=True):
            column.index_copy_(0, places, part)

    def _locate(self, ids: np.ndarray) -> np.ndarray:
        """The row of each of `ids` (N,) int64, or `BEYOND`. Raises `KeyError` for an id no chunk holds."""
        outside = (ids < 0) | (ids >= len(self._where))
        rows = np.where(outside, NOWHERE, self._where.take(ids, mode="clip")).astype(np.int64)
        lost = rows == NOWHERE
        if lost.any():
            raise KeyError(f"no chunk holds sample {ids[lost][0]}")
        return rows

    def _mark(self, start: int, chunk: _Chunk) -> None:
        self._where_there = None
        known, here, stop = len(self._where), start + len(chunk.rows), start + chunk.size
        if stop > known:
            room = np.full(max(stop, known + known // 4) - known, NOWHERE, np.int32)
            self._where = np.concatenate([self._where, room])
        self._where[start:here] = chunk.rows
        self._where[here:stop] = BEYOND

    def _reserve(self, chunk: Encoded) -> np.ndarray:
        """Rows for the samples of `chunk`, taken from the free ones; fewer where the limit leaves no room."""
        if len(chunk) > len(self._free):
            self._grow(len(chunk) - len(self._free), chunk)
        rows, self._free = np.split(self._free, [len(chunk)])
        return rows

    def _grow(self, lacking: int, like: Encoded) -> None:
        """Make room for `lacking` more rows of this kind, and some, within the limit."""
        old, held, row = self._columns, self.num_rows, like.num_bytes // len(like)
        require(self._limit >= row, "device pool limit", f"{self._limit} bytes", f"at least the {row} of a sample")
        size = min(self._limit // row, max(held + lacking, int(GROWTH * held)))
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
            places = sent(torch.from_numpy(rows), self._device)
            for column, part in zip(columns(self._columns), columns(chunk), strict=True):
                self._copies.lend(column)
                self._copies.lend(part)
                column.index_copy_(0, places, sent(part, self._device))


Rows = ChunkTable | DeviceRows
"""Where the samples of a store lie."""


def rows_on(device: torch.device, limit: int | None = None) -> Rows:
    """An empty table for samples drawn on `device`, where they take `limit` bytes at most.

    On a CPU chunks stay where they are. On a GPU the limit is `default_limit` where none is given. Raises `InputError`
    for a limit on a CPU.
    """
    if device.type == "cpu":
        require(limit is None, "device pool limit on a CPU", f"{limit} bytes", "none, or a GPU")
        return ChunkTable()
    return DeviceRows(device, default_limit(device) if limit is None else limit)
