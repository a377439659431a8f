"""The actor of a node that puts chunks of samples from their files into the node's object store, and joins small ones.

The pool calls it, so the pool owns the objects, and no sample passes through the process of the pool. An object has the
columns of a chunk, which all trials of the node map read-only.
"""

import os
import threading

import numpy as np
import ray

from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.store import Arrays, read_chunk, write_chunk

JOIN = "join"
"""Name of the thread in which chunks are joined, so that no trial waits for a join."""
NICENESS = 10
"""Nice value of that thread: trials go first (our choice)."""


class ChunkLoader:
    """Reads chunk files for the object store of its node."""

    def load(self, path: Location) -> Arrays:
        """Return the arrays of a chunk file. Raises `FileNotFoundError` if the file does not exist any more."""
        return read_chunk(path)

    @ray.method(concurrency_group=JOIN, num_returns=2)
    def join(self, paths: list[Location], target: Location) -> tuple[int, Arrays]:
        """Write the chunks of several files to one file; return its size in bytes of samples, and its arrays.

        Logits are left out unless all of the files have them.
        """
        _give_way()
        parts = [read_chunk(path) for path in paths]
        # If the trial reads no logits, an older version that began it may have stored them in its chunks.
        if not all(logits.shape[1] for _, _, logits in parts):
            parts = [(images, labels, logits.reshape(len(logits), -1)[:, :0]) for images, labels, logits in parts]
        images, labels, logits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        write_chunk(target, (images, labels, logits))
        return num_bytes((images, labels, logits)), (images, labels, logits)


def num_bytes(arrays: Arrays) -> int:
    """Return the bytes of a chunk's samples."""
    return sum(array.nbytes for array in arrays)


def _give_way() -> None:
    """Lower the priority of the calling thread where the system has priorities of threads (Linux)."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
