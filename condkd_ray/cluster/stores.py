"""Stores whose chunks lie in the pool: mapped read-only, drawn from here. A draw makes no remote call."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from condkd_ray.cluster.chunk_cache import Placed
from condkd_ray.cluster.pool import Table
from condkd_ray.cluster.waiting import WATCH
from condkd_ray.memory.chunks import Arrays, from_arrays, read_chunk, to_arrays
from condkd_ray.memory.store import TableStore
from condkd_ray.samples import Codec, Encoded
from condkd_ray.storage import Location

PATIENCE_SECONDS = 120.0
"""How long a trial goes on asking for a pool that is being restarted."""


class MappedStore(TableStore):
    """What these stores share: they hear from the pool where the chunks of a key are, and map them."""

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu", who: str = ""
    ) -> None:
        super().__init__(codec, num_classes, device)
        self._pool, self._key, self._who = pool, key, who or key
        self._placed: dict[int, Placed] = {}
        self._version = ""

    def _ask(self, call: Callable[[str], Any], table: Callable[[Any], Table] = lambda answer: answer) -> Any:
        """Call the pool, given the version we have, map what it answers, and return that.

        A pool that died in between comes back with other objects over the same files: it is asked anew.
        """
        import ray
        from ray.exceptions import ActorUnavailableError, ObjectLostError

        deadline = time.monotonic() + PATIENCE_SECONDS
        have = self._version
        while True:
            try:
                with WATCH.running():
                    answer = ray.get(call(have))
                    version, chunks = table(answer)
                    if chunks is not None:
                        self._map(chunks)
            except (ObjectLostError, ActorUnavailableError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                have = ""
            else:
                self._version = version
                return answer

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = [start for start, placed in chunks.items() if self._placed.get(start) != placed]
        views = _views([chunks[start] for start in changed])
        for start in set(self._placed) - set(chunks):
            self._unmap(start)
        for start, arrays in zip(changed, views, strict=True):
            self._placed[start] = chunks[start]
            self._mapped(start, from_arrays(arrays))

    @abstractmethod
    def _mapped(self, start: int, chunk: Encoded) -> None:
        """A chunk of the pool can be read."""

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._table.remove(start)


def _views(chunks: list[Placed]) -> list[Arrays]:
    import ray

    refs = [chunk.source for chunk in chunks if not isinstance(chunk.source, Location)]
    copies = iter(ray.get(refs))
    return [read_chunk(c.source) if isinstance(c.source, Location) else next(copies) for c in chunks]


class PoolStore(MappedStore):
    """The store of one trial, which alone writes to its key. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool.
    """

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, pool, key, device)
        self._sealed = 0
        self._to_drop: list[int] = []
        self._ask(lambda have: pool.table.remote(key, have, key))

    def _append(self, start: int, encoded: Encoded) -> None:
        arrays, drop, sealed = to_arrays(encoded), self._to_drop, self._sealed
        self._ask(lambda have: self._pool.append.remote(self._key, start, arrays, have=have, drop=drop, sealed=sealed))
        self._to_drop = []

    def commit(self) -> None:
        """Unmap chunks of which nothing lives. The pool hears of it with the next `append`."""
        for start, _ in self._dead():
            self._unmap(start)
            self._to_drop.append(start)
        self._sealed = self.num_ids

    def _truncate(self, num_ids: int) -> None:
        if any(start + len(chunk) > num_ids for start, chunk in self._table.items()):
            self._ask(lambda have: self._pool.truncate.remote(self._key, num_ids, have))
        self._sealed = num_ids

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._table.put(start, chunk)
        self._ledger.cover(start, chunk.classes)
