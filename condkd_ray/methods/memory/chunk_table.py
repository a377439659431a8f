"""A table of chunks in this machine's memory, from which samples are gathered by id.

A chunk holds samples of consecutive ids. It may be a view of shared memory or of a file: gathering always copies.
Letters: N samples, M chunks.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.samples import Encoded

COMPACT = 4096
"""Small chunks next to each other are joined up to this many samples (our choice: 12 MiB of 32x32 colour images) ..."""
JOIN_FROM = 16
"""... where so many of them lie together, or no more would fit; samples of usual rounds are copied once or twice."""


def columns(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, logits."""
    return encoded.images, encoded.labels, encoded.logits


def moved(encoded: Encoded, device: torch.device | str) -> Encoded:
    """The same on `device`; not copied where it lies there. See `sent`: to a GPU nobody waits for it."""
    return Encoded(*(sent(column, device) for column in columns(encoded)))


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


class ChunkTable:
    """Chunks by first id, gathered from by id. Chunks may be views of shared memory; gathering always copies.

    `pinned`: whether what is gathered lies in pinned memory, from which a GPU copies while the host goes on. PyTorch
    keeps such blocks, and hands one out again only once the copies from it are done: so a batch can be gathered while
    the last one is still on its way, and neither overwrites the other.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._chunks: dict[int, Encoded] = {}
        self._index: _Index | None = None
        self._pinned = pinned

    def put(self, start: int, chunk: Encoded, near: Encoded | None = None) -> None:
        """Add the chunk whose first id is `start`, or replace the one there.

        `near`: as of `DeviceRows.put`; a table in this machine's memory makes no use of it.
        """
        self._chunks[start] = Encoded(*(column.contiguous() for column in columns(chunk)))
        self._index = None

    def remove(self, start: int) -> None:
        """Forget the chunk whose first id is `start`. Raises `KeyError` where there is none."""
        del self._chunks[start]
        self._index = None

    def compact(self) -> None:
        """Join small neighbours, so that a draw meets fewer chunks."""
        for run in joinable(self.spans()):
            whole = join([self._chunks[start] for start in run])
            for start in run:
                self.remove(start)
            self.put(run[0], whole)

    def spans(self) -> list[tuple[int, int]]:
        """(first id, number of samples) of each chunk, in order."""
        return sorted((start, len(chunk)) for start, chunk in self._chunks.items())

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
        return index.rows.gather(index.locate(wanted), wanted, pinned=self._pinned)

    def _indexed(self) -> "_Index":
        # Made when it is asked for: a refresh changes many chunks at once.
        if self._index is None:
            self._index = _Index(self._chunks)
        return self._index


class _Index:
    """Where each id lies, in a table as it is now."""

    def __init__(self, chunks: dict[int, Encoded]) -> None:
        starts = sorted(chunks)
        self._starts, self._chunks = np.array(starts, np.int64), [chunks[start] for start in starts]
        # One more in front, for ids before the first chunk: nothing is held there.
        self._stops = np.array([np.iinfo(np.int64).min, *(start + len(chunks[start]) for start in starts)])

    def locate(self, ids: np.ndarray) -> np.ndarray:
        """Which chunk, counted in order, holds each of `ids` (N,). Raises `KeyError` for an id no chunk holds."""
        which = self._starts.searchsorted(ids, "right") - 1
        lost = ids >= self._stops[which + 1]
        if lost.any():
            raise KeyError(f"no chunk holds sample {ids[lost][0]}")
        return which

    @cached_property
    def rows(self) -> "_Spanned":
        """All samples. Raises `KeyError` where there is no chunk."""
        if not self._chunks:
            raise KeyError("no chunk holds anything")
        return _Spanned(self._starts, self._chunks)


class _Spanned:
    """Samples of chunks, gathered by one native call a column, however many chunks there are.

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

    def gather(self, which: np.ndarray, ids: np.ndarray, *, pinned: bool) -> Encoded:
        """Copies of the rows `ids` (N,), where chunk `which[i]` holds `ids[i]`."""
        places = torch.from_numpy(self._origins.take(which, 1) + self._steps * ids)
        return Encoded(*(_picked(rows, place, pinned) for rows, place in zip(self._rows, places, strict=True)))


def _picked(rows: Tensor, places: Tensor, pinned: bool) -> Tensor:
    if not pinned:
        return rows.index_select(0, places)
    out = torch.empty((len(places), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
    return torch.index_select(rows, 0, places, out=out)


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
