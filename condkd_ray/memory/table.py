"""A table of chunks that gathers samples by id.

Letters: N samples, M chunks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from condkd_ray.samples import Encoded


class ChunkTable:
    """Chunks by first id, gathered from by id. Chunks may be views of shared memory; gathering always copies."""

    def __init__(self) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._index: _Index | None = None

    def put(self, start: int, chunk: Encoded) -> None:
        """Add the chunk whose first id is `start`, or replace the one there."""
        self._chunks[start] = Encoded(*(column.contiguous() for column in _columns(chunk)))
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
        which = index.locate(wanted)
        return Encoded(*(column.gather(which, wanted) for column in index.columns()))

    def _indexed(self) -> _Index:
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
        self._parts = list(zip(*(_columns(chunk) for _, chunk in items), strict=True))
        self._columns: list[Spanned | Parted] = []

    def locate(self, ids: np.ndarray) -> np.ndarray:
        """Which chunk, counted in order, holds each of `ids` (N,). Raises `KeyError` for an id no chunk holds."""
        which = self._starts.searchsorted(ids, "right") - 1
        lost = ids >= self._stops[which + 1]
        if lost.any():
            raise KeyError(f"no chunk holds sample {ids[lost][0]}")
        return which

    def columns(self) -> list[Spanned | Parted]:
        """Images, labels, logits. Raises `KeyError` where there is no chunk."""
        if not self._parts:
            raise KeyError("no chunk holds anything")
        if not self._columns:
            kind = Spanned if self._parts[0][0].device.type == "cpu" else Parted
            self._columns = [kind(self._starts, list(parts)) for parts in self._parts]
        return self._columns


class Spanned:
    """One column of chunks in this machine's memory, gathered by one native call, however many chunks there are.

    They lie apart, so the call is given all of the memory from the lowest to the highest as one tensor, whose position
    i is the row that would begin i elements behind the lowest chunk. Positions that begin no row of a chunk are never
    read. One call a chunk would take several times as long where a draw meets hundreds of them.
    """

    def __init__(self, starts: np.ndarray, parts: list[Tensor]) -> None:
        addresses = np.array([part.data_ptr() for part in parts])
        self._parts = parts  # keeps their memory
        lowest = parts[int(addresses.argmin())].numpy()
        firsts, self._step = (addresses - addresses.min()) // lowest.itemsize, lowest[0].size
        # Where id 0 would lie if the chunk began with it.
        self._origins = firsts - self._step * starts
        last = max(int(first) + self._step * (len(part) - 1) for first, part in zip(firsts, parts, strict=True))
        strides = (lowest.itemsize, *lowest.strides[1:])
        rows = np.lib.stride_tricks.as_strided(lowest, (last + 1, *lowest.shape[1:]), strides)
        self._rows = torch.from_numpy(rows)

    def gather(self, which: np.ndarray, ids: np.ndarray) -> Tensor:
        """Copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        return self._rows.index_select(0, torch.from_numpy(self._origins[which] + self._step * ids))


class Parted:
    """One column of chunks on another device, gathered chunk by chunk."""

    def __init__(self, starts: np.ndarray, parts: list[Tensor]) -> None:
        self._starts, self._parts = starts, parts

    def gather(self, which: np.ndarray, ids: np.ndarray) -> Tensor:
        """Copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        order = which.argsort(kind="stable")
        met, begins = np.unique(which[order], return_index=True)
        device = self._parts[0].device
        wanted = np.split((ids - self._starts[which])[order], begins[1:])
        taken = [
            self._parts[i].index_select(0, torch.from_numpy(part).to(device))
            for i, part in zip(met, wanted, strict=False)  # of no ids there is one empty part
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.cat(taken or [self._parts[0][:0]]).index_select(0, torch.from_numpy(back).to(device))


def _columns(chunk: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    return chunk.images, chunk.labels, chunk.logits
