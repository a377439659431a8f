"""The actor of a node that puts chunks of samples from their files into the node's object store, and joins small ones.

The pool calls it, so the pool owns the objects, but their samples do not pass through the process of the pool. (Ray
keeps objects of less than 100 kB in the process of their owner.) An object has the columns of a chunk, which all trials
of the node map read-only.
"""

import os
import threading
from typing import NamedTuple

import numpy as np
import ray

from condkd_ray.core.chunk_files import Arrays, read_chunk, write_chunk
from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import Location, no_room

JOIN = "join"
"""Name of the thread in which chunks are joined, so that no trial waits for a join."""
NICENESS = 10
"""Nice value of that thread: trials go first (our choice)."""


class Written(NamedTuple):
    """Size of a chunk in a file, in samples and in bytes of samples."""

    size: int
    num_bytes: int


class ChunkLoader:
    """Reads chunk files for the object store of its node."""

    def load(self, path: Location) -> Arrays | str | None:
        """Return the arrays of a chunk file; None if the file does not exist any more, as the pool has replaced it.

        If the file cannot be read, the reason is returned: Ray would print the trace of an error.
        """
        try:
            return read_chunk(path)
        except FileNotFoundError:
            return None
        except Exception as error:
            return f"{path}: {first_line(error)}"

    @ray.method(concurrency_group=JOIN, num_returns=2)
    def join(self, target: Location, *parts: Arrays | Location | str | None) -> tuple[Written | str, Arrays | None]:
        """Write the given chunks to one file; return the size of the joined chunk, and its arrays.

        `parts`: arrays, or the file of a chunk that has no copy. Logits are left out unless all parts have them. If
        this fails, the reason stands in place of the size.
        """
        _give_way()
        try:
            arrays = _joined([read_chunk(part) if isinstance(part, Location) else part for part in parts])
            # The files of the parts will be deleted.
            write_chunk(target, arrays, durable=True)
        except Exception as error:
            return no_room(error) or first_line(error), None
        return size_of(arrays), arrays


def size_of(arrays: Arrays) -> Written:
    """Return the size of a chunk."""
    return Written(len(arrays[1]), sum(array.nbytes for array in arrays))


def _joined(parts: list[Arrays | str | None]) -> Arrays:
    found = [part for part in parts if part is not None and not isinstance(part, str)]
    if len(found) < len(parts):
        raise OSError(next((part for part in parts if isinstance(part, str)), "a chunk does not exist any more"))
    # If the trial reads no logits, an older version that began it may have stored them in its chunks.
    if not all(logits.shape[1] for _, _, logits in found):
        found = [(images, labels, logits.reshape(len(logits), -1)[:, :0]) for images, labels, logits in found]
    images, labels, logits = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return images, labels, logits


def _give_way() -> None:
    """Lower the priority of the calling thread where the system has priorities of threads (Linux)."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
