"""Where remembered samples lie. What is kept and what is drawn is the memory's policy; a store only holds rows."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from condkd_ray.memory.chunks import (
    ChunkTable,
    chunk_path,
    chunk_range,
    from_arrays,
    join,
    read_chunk,
    stored_chunks,
    to_arrays,
    write_chunk,
)
from condkd_ray.samples import Codec, Encoded, Samples

COMPACT = 4096
"""Small chunks next to each other are joined up to this many images."""


class Store(Protocol):
    """Append-only rows with running ids. Samples come back as encoded: uint8 or float16 images, float16 logits."""

    codec: Codec

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        ...

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live samples of each class."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the encoded samples held."""
        ...

    def append(self, samples: Samples) -> Tensor:
        """Keep a round's samples as one chunk; their ids (B,), consecutive."""
        ...

    def gather(self, ids: Tensor) -> Samples:
        """Copies of the samples `ids`, decoded, in that order."""
        ...

    def drop(self, ids: Tensor) -> None:
        """Say that no memory refers to `ids` any more."""
        ...

    def commit(self) -> None:
        """A checkpoint has been written: what was dropped before it may now really go."""
        ...

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Become as at a checkpoint: forget ids from `num_ids` on (they will be made again), drop all but `live`."""
        ...


class LocalStore:
    """A store in this process, on the samples' device; with a `folder`, each chunk is a file there as well.

    The files serve resuming alone: a checkpoint never holds images. See `Store` for the verbs.
    """

    def __init__(self, codec: Codec, num_classes: int, folder: Path | None = None, device: str | torch.device = "cpu"):
        self.codec = codec
        self.device = torch.device(device)
        self._folder = folder
        self._table = ChunkTable()
        self._live: dict[int, Tensor] = {}
        self.num_ids = 0
        self.class_counts = torch.zeros(num_classes, dtype=torch.int64)
        for path in stored_chunks(folder) if folder else []:
            self._put(chunk_range(path)[0], from_arrays(read_chunk(path)))

    @property
    def num_bytes(self) -> int:
        """Bytes of the encoded samples held."""
        return self._table.num_bytes

    def _put(self, start: int, encoded: Encoded) -> None:
        encoded = Encoded(*(t.to(self.device) for t in (encoded.images, encoded.labels, encoded.logits)))
        self._table.put(start, encoded)
        self._live[start] = torch.ones(len(encoded), dtype=torch.bool)
        self.num_ids = start + len(encoded)
        self._count(encoded.labels, +1)

    def _count(self, labels: Tensor, sign: int) -> None:
        self.class_counts += sign * torch.bincount(labels.cpu(), minlength=len(self.class_counts))

    def append(self, samples: Samples) -> Tensor:
        """One chunk more; see `Store`."""
        start, encoded = self.num_ids, self.codec.encode(samples)
        if self._folder is not None:
            write_chunk(chunk_path(self._folder, start, start + len(encoded)), to_arrays(encoded))
        self._put(start, encoded)
        return torch.arange(start, self.num_ids)

    def gather(self, ids: Tensor) -> Samples:
        """Decoded copies; see `Store`."""
        return self.codec.decode(self._table.gather(ids))

    def drop(self, ids: Tensor) -> None:
        """Mark as dead; see `Store`."""
        ids = ids.cpu()
        for start, chunk in self._table.items():
            rows = ids[(ids >= start) & (ids < start + len(chunk))] - start
            rows = rows[self._live[start][rows]]
            self._live[start][rows] = False
            self._count(chunk.labels[rows.to(self.device)], -1)

    def commit(self) -> None:
        """Free chunks of which nothing lives, then join small neighbours in memory."""
        for start, chunk in self._table.items():
            if not self._live[start].any():
                self._remove(start, chunk)
        self._join_small()

    def _join_small(self) -> None:
        # Files stay one a round; only with a folder must a chunk in memory equal a file, so join just without one.
        if self._folder is not None:
            return
        run: list[tuple[int, Encoded]] = []
        for start, chunk in [*self._table.items(), (-1, None)]:
            size = sum(len(c) for _, c in run)
            follows = bool(run) and start == run[-1][0] + len(run[-1][1])
            if chunk is None or not follows or size + len(chunk) > COMPACT:
                self._join(run)
                run = []
            if chunk is not None:
                run.append((start, chunk))

    def _join(self, run: list[tuple[int, Encoded]]) -> None:
        if len(run) < 16:
            return
        first = run[0][0]
        live = torch.cat([self._live.pop(start) for start, _ in run])
        joined = join([chunk for _, chunk in run])
        for start, _ in run:
            self._table.remove(start)
        self._table.put(first, joined)
        self._live[first] = live

    def restore(self, num_ids: int, live: Tensor) -> None:
        """See `Store`. Raises `ValueError` where chunks of the checkpoint are missing."""
        for start, chunk in self._table.items():
            if start >= num_ids:
                self._remove(start, chunk)
        if self.num_ids < num_ids:
            raise ValueError(f"the store has samples 0..{self.num_ids - 1}, the checkpoint was written with {num_ids}")
        self.num_ids = num_ids
        every = torch.arange(num_ids)
        self.drop(every[~torch.isin(every, live)])

    def _remove(self, start: int, chunk: Encoded) -> None:
        self._count(chunk.labels[self._live.pop(start).to(self.device)], -1)
        self._table.remove(start)
        if self._folder is not None:
            chunk_path(self._folder, start, start + len(chunk)).unlink(missing_ok=True)
