"""A table of chunks that gathers samples by id.

Letters: N samples, M chunks.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.samples import Encoded
from condkd_ray.methods.memory.chunks import columns, join


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
