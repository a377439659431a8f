"""Stores whose chunks lie in the pool: mapped read-only, drawn from here. A draw makes no remote call."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from condkd_ray.cluster.pool.actor import Table
from condkd_ray.cluster.pool.chunk_cache import Placed
from condkd_ray.cluster.pool.stopwatch import WATCH
from condkd_ray.core.samples import Codec, Encoded, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.chunks import Arrays, from_arrays, read_chunk, to_arrays
from condkd_ray.methods.memory.store import Store

T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""How long a trial goes on asking for a pool that is being restarted."""


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, which calls the pool; again and again for a while, should that just be restarted."""
    from ray.exceptions import ActorUnavailableError, ObjectLostError

    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with WATCH.running():
                return ask()
        except (ObjectLostError, ActorUnavailableError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class MappedStore(Store):
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

        def ask() -> Any:
            have, self._version = self._version, ""
            answer = ray.get(call(have))
            version, chunks = table(answer)
            if chunks is not None:
                self._map(chunks)
            self._version = version
            return answer

        return patiently(ask)

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = [start for start, placed in chunks.items() if self._placed.get(start) != placed]
        views = _views([chunks[start] for start in changed])
        for start in set(self._placed) - set(chunks):
            self._unmap(start)
        for start, arrays in zip(changed, views, strict=True):
            self._placed[start] = chunks[start]
            self._mapped(start, self._returned(from_arrays(arrays)))

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


class OwnedStore(MappedStore):
    """One whose key belongs to its trial alone: what this drops goes from the pool too."""

    _sealed = 0
    """Ids below it are in a checkpoint."""
    _to_drop: Sequence[int] = ()
    """First ids of chunks that the pool may remove."""

    def commit(self) -> None:
        """Unmap chunks of which nothing lives. The pool hears of it with the next call of a round."""
        dead = [start for start, _ in self._dead()]
        for start in dead:
            self._unmap(start)
        self._to_drop = [*self._to_drop, *dead]
        self._sealed = self.num_ids


class PoolStore(OwnedStore):
    """The store of one trial, which alone writes to its key. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool.
    """

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, pool, key, device)
        self._ask(lambda have: pool.table.remote(key, have, key))

    def _append(self, start: int, encoded: Encoded) -> None:
        arrays, drop, sealed = to_arrays(encoded), self._to_drop, self._sealed
        self._ask(lambda have: self._pool.append.remote(self._key, start, arrays, have=have, drop=drop, sealed=sealed))
        self._to_drop = ()

    def _truncate(self, num_ids: int) -> None:
        if any(start + len(chunk) > num_ids for start, chunk in self._table.items()):
            self._ask(lambda have: self._pool.truncate.remote(self._key, num_ids, have))
        self._sealed = num_ids

    def _mapped(self, start: int, chunk: Encoded) -> None:
        self._table.put(start, chunk)
        self._ids.cover(start, chunk.classes)


class AdoptingStore(MappedStore):
    """A trial's view of rounds that others put into the pool. Ids are the pool's; they live once the trial has them."""

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, who: str, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(codec, num_classes, pool, key, device, who)
        self._ask(lambda have: pool.table.remote(key, have, who))

    def look(self, count: int) -> Samples:
        """The `count` samples behind the last id given out."""
        return self.codec.decode(self._table.gather(torch.arange(self.num_ids, self.num_ids + count))).to(self.device)

    def append(self, samples: Samples) -> Tensor:
        """Take over those at which `look` has looked: nothing is sent. Their ids."""
        start = self.num_ids
        self._ids.cover(start, samples.classes)
        return torch.arange(start, self.num_ids)

    def _append(self, start: int, encoded: Encoded) -> None:
        raise AssertionError("others put samples into this store's key")

    def restore(self, num_ids: int, live: Tensor) -> None:
        """See `Store`."""
        for start, chunk in self._table.items():
            if start < num_ids:
                self._ids.cover(start, chunk[: num_ids - start].classes)
        super().restore(num_ids, live)

    def _dead(self) -> list[tuple[int, Encoded]]:
        return [(start, chunk) for start, chunk in super()._dead() if start + len(chunk) <= self.num_ids]

    def _mapped(self, start: int, chunk: Encoded) -> None:
        if start + len(chunk) > self.num_ids or self._ids.any_live(start, len(chunk)):
            self._table.put(start, chunk)

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        if start in dict(self._table.items()):
            self._table.remove(start)


class FilledStore(OwnedStore, AdoptingStore):
    """The store of a trial whose producers fill its key, some rounds ahead of it. What it drops goes."""

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, pool, key, key, device)

    def refresh(self) -> None:
        """See what has come. The one remote call of a round."""
        drop, sealed = self._to_drop, self._sealed
        self._ask(lambda have: self._pool.tend.remote(self._key, have, drop=drop, sealed=sealed))
        self._to_drop = ()

    def clear_ahead(self) -> None:
        """Remove what the trial has not taken yet: it will be made again."""
        self._truncate(self.num_ids)

    def _truncate(self, num_ids: int) -> None:
        self._ask(lambda have: self._pool.truncate.remote(self._key, num_ids, have))
        self._sealed = min(self._sealed, num_ids)
