"""Stores of samples: their chunks, and the ids that are still in use.

What is kept and what is drawn is the memory's policy; a store only holds rows. An id is the running number of a sample
in its store; a chunk holds consecutive ids. Letters: N samples, M chunks, C channels, H W height and width, K classes.
"""

import warnings
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from condkd_ray.core.chunk_files import Arrays, MissingSamplesError, chunk_path, read_stored, write_chunk
from condkd_ray.core.samples import Codec, Encoded, Samples, pixel_counts
from condkd_ray.methods.memory.chunk_table import columns
from condkd_ray.methods.memory.device_rows import rows_on


def to_arrays(encoded: Encoded) -> Arrays:
    """Return the tensors as numpy arrays on the CPU."""
    return tuple(column.detach().cpu().contiguous().numpy() for column in columns(encoded))  # type: ignore[return-value]


def from_arrays(arrays: Arrays) -> Encoded:
    """Return tensors over the same memory. Tensors over read-only arrays must not be written to; gathering copies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Encoded(*map(torch.from_numpy, arrays))


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
