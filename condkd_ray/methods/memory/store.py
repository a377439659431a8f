"""Where remembered samples lie. What is kept and what is drawn is the memory's policy; a store only holds rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.methods.memory.chunk_table import ChunkTable
from condkd_ray.methods.memory.chunks import (
    chunk_path,
    chunk_range,
    from_arrays,
    join,
    joinable,
    moved,
    read_chunk,
    stored_chunks,
    to_arrays,
    write_chunk,
)
from condkd_ray.methods.memory.live_ids import Ledger


class MissingSamplesError(ValueError):
    """Chunks that a checkpoint refers to are not there: the trial can only start anew."""


class Store(Protocol):
    """Append-only rows with running ids. Samples come back as encoded: uint8 or float16 images, float16 logits.

    Logits come back where the codec has them and the samples came with them, otherwise as (B, 0).
    """

    codec: Codec

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        ...

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live samples of each class, as the teacher sees them; without logits they count nowhere."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the live samples, encoded. Chunks with dead ones among them take somewhat more."""
        ...

    def append(self, samples: Samples) -> Tensor:
        """Keep a round's samples as one chunk; their ids (B,), consecutive, on the CPU."""
        ...

    def gather(self, ids: Tensor) -> Samples:
        """Copies of the samples `ids`, decoded, in that order. Raises `KeyError` for an id it does not hold."""
        ...

    def drop(self, ids: Tensor) -> None:
        """Say that no memory refers to `ids` any more."""
        ...

    def commit(self) -> None:
        """A checkpoint has been written: what was dropped before it may now really go."""
        ...

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Become as at a checkpoint: forget ids from `num_ids` on (they will be made again), drop all but `live`.

        Raises `MissingSamplesError` where one of `live` is not there.
        """
        ...


class TableStore(ABC):
    """What stores of chunks share: the table, the ledger, and all verbs that need no more than these two."""

    def __init__(self, codec: Codec, num_classes: int, device: str | torch.device = "cpu") -> None:
        self.codec = codec
        self.device = torch.device(device)
        self._table = ChunkTable()
        self._ledger = Ledger(num_classes)

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        return self._ledger.num_ids

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live samples of each class."""
        return self._ledger.class_counts

    @property
    def num_bytes(self) -> int:
        """Bytes of the live samples, encoded."""
        return self._ledger.num_live * self._table.row_bytes

    def append(self, samples: Samples) -> Tensor:
        """One chunk more; see `Store`."""
        start, encoded = self.num_ids, self.codec.encode(samples)
        if len(encoded):
            self._append(start, encoded)
        return torch.arange(start, start + len(encoded))

    def gather(self, ids: Tensor) -> Samples:
        """Decoded copies, on the device; see `Store`."""
        return self.codec.decode(moved(self._table.gather(ids), self.device))

    def drop(self, ids: Tensor) -> None:
        """Mark as dead; see `Store`."""
        self._ledger.drop(ids)

    def restore(self, num_ids: int, live: Tensor) -> None:
        """See `Store`."""
        self._truncate(num_ids)
        try:
            self._table.check(live)
        except KeyError as error:
            message = f"a checkpoint after {num_ids} samples needs what is gone: {error.args[0]}"
            raise MissingSamplesError(message) from None
        self._ledger.restore(num_ids, live)

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
    def _append(self, start: int, encoded: Encoded) -> None:
        """Keep a chunk and enter it into table and ledger."""

    @abstractmethod
    def commit(self) -> None:
        """See `Store`."""

    @abstractmethod
    def _truncate(self, num_ids: int) -> None:
        """Remove all chunks of ids from `num_ids` on, for good."""

    def _dead(self) -> list[tuple[int, Encoded]]:
        """(First id, chunk) of chunks of which nothing lives."""
        return [(start, c) for start, c in self._table.items() if not self._ledger.any_live(start, len(c))]


class LocalStore(TableStore):
    """A store in this process, on the samples' device; with a `folder`, each chunk is a file there as well.

    The files serve resuming alone: a checkpoint never holds images. See `Store` for the verbs.
    """

    def __init__(self, codec: Codec, num_classes: int, folder: Path | None = None, device: str | torch.device = "cpu"):
        super().__init__(codec, num_classes, device)
        self._folder = folder
        for path in stored_chunks(folder) if folder else []:
            self._put(chunk_range(path)[0], self._returned(from_arrays(read_chunk(path))))

    def _append(self, start: int, encoded: Encoded) -> None:
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
        self._ledger.cover(start, encoded.classes)

    def _remove(self, start: int, chunk: Encoded) -> None:
        self._table.remove(start)
        if self._folder is not None:
            chunk_path(self._folder, start, start + len(chunk)).unlink(missing_ok=True)
