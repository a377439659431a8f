"""The actor of a node that puts chunks of samples from their files into the node's object store, and joins small ones.

The pool calls it, so the pool owns the objects, and no sample passes through the process of the pool. An object has the
columns of a chunk, which all trials of the node map read-only.
"""

import os
import threading

import numpy as np
import ray

from condkd_ray.core.chunk_files import Arrays, read_chunk, write_chunk
from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import Location, no_room

JOIN = "join"
"""Name of the thread in which chunks are joined, so that no trial waits for a join."""
NICENESS = 10
"""Nice value of that thread: trials go first (our choice)."""


class ChunkLoader:
    """Reads chunk files for the object store of its node.

    The methods raise no error: Ray would print its trace if nobody asks for the object any more.
    """

    def load(self, path: Location) -> Arrays | None:
        """Return the arrays of a chunk file; None if the file does not exist any more."""
        try:
            return read_chunk(path)
        except FileNotFoundError:
            return None

    @ray.method(concurrency_group=JOIN, num_returns=2)
    def join(self, paths: list[Location], target: Location) -> tuple[int | str, Arrays | None]:
        """Write the chunks of several files to one file; return its size in bytes of samples, and its arrays.

        Logits are left out unless all of the files have them. If it fails, the reason stands in place of the size.
        """
        _give_way()
        try:
            arrays = _joined([read_chunk(path) for path in paths])
            write_chunk(target, arrays)
        except Exception as error:
            return no_room(error) or first_line(error), None
        return num_bytes(arrays), arrays


def _joined(parts: list[Arrays]) -> Arrays:
    # If the trial reads no logits, an older version that began it may have stored them in its chunks.
    if not all(logits.shape[1] for _, _, logits in parts):
        parts = [(images, labels, logits.reshape(len(logits), -1)[:, :0]) for images, labels, logits in parts]
    images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return images, labels, logits


def num_bytes(arrays: Arrays) -> int:
    """Return the bytes of a chunk's samples."""
    return sum(array.nbytes for array in arrays)


def _give_way() -> None:
    """Lower the priority of the calling thread where the system has priorities of threads (Linux)."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
