"""A table of chunks in CPU memory, from which samples are gathered by id.

A chunk holds samples of consecutive ids. It may be a view of shared memory or of a file: gathering always copies.
Letters: N samples, M chunks.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.chunk_files import joinable
from condkd_ray.core.device import sent
from condkd_ray.core.samples import Encoded


def columns(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels and logits."""
    return encoded.images, encoded.labels, encoded.logits


def moved(encoded: Encoded, device: torch.device | str) -> Encoded:
    """Return the same samples on `device`, without a copy if they are there; a copy to a GPU is asynchronous."""
    return Encoded(*(sent(column, device) for column in columns(encoded)))


def join(chunks: list[Encoded]) -> Encoded:
    """Return several chunks as one, copied."""
    return Encoded(*map(torch.cat, zip(*map(columns, chunks), strict=True)))


class ChunkTable:
    """Chunks by first id, from which samples are gathered by id.

    Chunks may be views of shared memory; gathering always copies. `pinned`: whether gathered samples are in pinned
    memory, from which a GPU copies asynchronously. PyTorch reuses a pinned block only after all copies from it are
    done: a batch can therefore be gathered while the previous one is still being copied, and neither overwrites the
    other.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._index: _Index | None = None
        self._pinned = pinned

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the index, which is built again.

        Its rows span all memory between the chunks, which a copy would read as well.
        """
        return vars(self) | {"_index": None}

    def put(self, start: int, chunk: Encoded, near: Encoded | None = None) -> None:
        """Add the chunk whose first id is `start`, or replace the chunk there.

        `near`: see `DeviceRows.put`; unused by a table in CPU memory.
        """
        self._chunks[start] = Encoded(*(column.contiguous() for column in columns(chunk)))
        self._index = None

    def remove(self, start: int) -> None:
        """Remove the chunk whose first id is `start`. Raises `KeyError` if there is none."""
        del self._chunks[start]
        self._index = None

    def compact(self) -> None:
        """Join adjacent small chunks, so that a draw reads fewer chunks."""
        for run in joinable(self.spans()):
            whole = join([self._chunks[start] for start in run])
            for start in run:
                self.remove(start)
            self.put(run[0], whole)

    def spans(self) -> list[tuple[int, int]]:
        """Return (first id, number of samples) of each chunk, in order."""
        return sorted((start, len(chunk)) for start, chunk in self._chunks.items())

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample; 0 if the table is empty."""
        return next((chunk.num_bytes // len(chunk) for chunk in self._chunks.values()), 0)

    def check(self, ids: Tensor) -> None:
        """Raise `KeyError` if no chunk holds one of `ids` (N,)."""
        self._indexed().locate(ids.cpu().numpy())

    def gather(self, ids: Tensor) -> Encoded:
        """Return copies of the samples `ids` (N,), in that order. Raises `KeyError` for an id that no chunk holds."""
        index, wanted = self._indexed(), ids.cpu().numpy()
        return index.rows.gather(index.locate(wanted), wanted, pinned=self._pinned)

    def _indexed(self) -> "_Index":
        # Built on first use, because a refresh changes many chunks at once.
        if self._index is None:
            self._index = _Index(self._chunks)
        return self._index


class _Index:
    """Position of each id in the current chunks."""

    def __init__(self, chunks: dict[int, Encoded]) -> None:
        starts = sorted(chunks)
        self._starts, self._chunks = np.array(starts, np.int64), [chunks[start] for start in starts]
        # One more entry in front, for ids before the first chunk, which no chunk holds.
        self._stops = np.array([np.iinfo(np.int64).min, *(start + len(chunks[start]) for start in starts)])

    def locate(self, ids: np.ndarray) -> np.ndarray:
        """Return the position in order of the chunk that holds each of `ids` (N,). Raises `KeyError` if none does."""
        which = self._starts.searchsorted(ids, "right") - 1
        missing = ids >= self._stops[which + 1]
        if missing.any():
            raise KeyError(f"no chunk holds sample {ids[missing][0]}")
        return which

    @cached_property
    def rows(self) -> "_SpannedRows":
        """The rows of all samples. Raises `KeyError` if there is no chunk."""
        if not self._chunks:
            raise KeyError("no chunk holds anything")
        return _SpannedRows(self._starts, self._chunks)


class _SpannedRows:
    """Samples of all chunks, gathered with one native call per column, whatever the number of chunks.

    The chunks are at different addresses, so the call gets the memory from the lowest to the highest address as one
    tensor. Its position i is the row that would begin i elements after the start of the lowest chunk. Positions at
    which no row of a chunk begins are never read. One call per chunk would take several times as long when a draw reads
    hundreds of them.
    """

    def __init__(self, starts: np.ndarray, chunks: list[Encoded]) -> None:
        self._chunks = chunks  # keeps their memory
        by_column = list(zip(*map(columns, chunks), strict=True))
        firsts, self._rows = zip(*map(_span, by_column), strict=True)
        self._steps = np.array([[parts[0][0].numel()] for parts in by_column])
        # By column and chunk: the position of id 0 if the chunk began with it.
        self._origins = np.stack(firsts) - self._steps * starts

    def gather(self, which: np.ndarray, ids: np.ndarray, *, pinned: bool) -> Encoded:
        """Return copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        positions = torch.from_numpy(self._origins.take(which, 1) + self._steps * ids)
        return Encoded(*(_picked(rows, position, pinned) for rows, position in zip(self._rows, positions, strict=True)))


def _picked(rows: Tensor, positions: Tensor, pinned: bool) -> Tensor:
    if not pinned:
        return rows.index_select(0, positions)
    out = torch.empty((len(positions), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
    return torch.index_select(rows, 0, positions, out=out)


def _span(parts: Sequence[Tensor]) -> tuple[np.ndarray, Tensor]:
    """Return the positions (M,) at which `parts` begin in one tensor of all memory that they span, and that tensor."""
    if not parts[0].numel():
        # Missing logits take no memory and have no address.
        return np.zeros(len(parts), np.int64), parts[0][:1]
    addresses = np.array([part.data_ptr() for part in parts])
    lowest = parts[int(addresses.argmin())].numpy()
    firsts, step = (addresses - addresses.min()) // lowest.itemsize, lowest[0].size
    last = max(int(first) + step * (len(part) - 1) for first, part in zip(firsts, parts, strict=True))
    strides = (lowest.itemsize, *lowest.strides[1:])
    rows = np.lib.stride_tricks.as_strided(lowest, (last + 1, *lowest.shape[1:]), strides)
    return firsts, torch.from_numpy(rows)
