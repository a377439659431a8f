"""Stores whose chunks lie in the pool: mapped read-only, drawn from here. A draw makes no remote call."""

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from condkd_ray.cluster.pool.actor import Table
from condkd_ray.cluster.pool.chunk_cache import Placed
from condkd_ray.cluster.pool.stopwatch import WATCH
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory.store import Arrays, Store, from_arrays, read_chunk, to_arrays

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


def ask(method: Any, *args: Any) -> Any:
    """What a method of the pool, or of another actor that is started again, returns; see `patiently`."""
    import ray

    return patiently(lambda: ray.get(method.remote(*args)))


class PoolView:
    """The chunks of one key of the pool, mapped into this process as the pool last told where they are.

    `mapped` hears the first id and arrays of a chunk that is new or has changed, `unmapped` the first id of one that is
    gone. `who` reads: a trial's key.
    """

    def __init__(
        self, pool: Any, key: str, who: str, mapped: Callable[[int, Arrays], None], unmapped: Callable[[int], object]
    ) -> None:
        self.pool, self.key, self.who = pool, key, who
        self._on_mapped, self._on_unmapped = mapped, unmapped
        self._placed: dict[int, Placed] = {}
        self._version = ""
        self._drop: list[int] = []
        self.sealed = 0
        """Where the key belongs to one trial: ids below it are in a checkpoint."""
        self.ask("table", who=who)

    def ask(
        self, method: str, *args: Any, table: Callable[[Any], Table] = lambda answer: answer, **options: Any
    ) -> Any:
        """Call a method of the pool on the key, map what has changed by the `table` in its answer, and return that.

        A pool that died in between comes back with other objects over the same files: it is asked anew.
        """
        import ray

        def ask() -> Any:
            have, self._version = self._version, ""
            answer = ray.get(getattr(self.pool, method).remote(self.key, *args, have=have, **options))
            version, chunks = table(answer)
            if chunks is not None:
                self._map(chunks)
            self._version = version
            return answer

        return patiently(ask)

    def tidy(self, starts: Iterable[int], sealed: int) -> None:
        """Let go of chunks by first id; the pool hears that it may remove them, and of `sealed`, by `ask_tidily`."""
        for start in starts:
            self._unmap(start)
            self._drop.append(start)
        self.sealed = sealed

    def ask_tidily(self, method: str, *args: Any) -> None:
        """As `ask`, of a key that belongs to one trial."""
        self.ask(method, *args, drop=self._drop, sealed=self.sealed)
        self._drop = []

    def _unmap(self, start: int) -> None:
        del self._placed[start]
        self._on_unmapped(start)

    def _map(self, chunks: dict[int, Placed]) -> None:
        changed = [start for start, placed in chunks.items() if self._placed.get(start) != placed]
        arrays = _arrays([chunks[start] for start in changed])
        for start in set(self._placed) - set(chunks):
            self._unmap(start)
        for start, chunk in zip(changed, arrays, strict=True):
            self._placed[start] = chunks[start]
            self._on_mapped(start, chunk)


def _arrays(chunks: list[Placed]) -> list[Arrays]:
    import ray

    refs = [chunk.source for chunk in chunks if not isinstance(chunk.source, Location)]
    copies = iter(ray.get(refs))
    return [read_chunk(c.source) if isinstance(c.source, Location) else next(copies) for c in chunks]


class PoolStore(Store):
    """The store of one trial, which alone writes to its key. See `Store` for the verbs.

    A round costs one remote call, that of `append`, whose answer also shows what has changed in the pool.
    """

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, device)
        self._view = PoolView(pool, key, key, self._mapped, self._table.remove)

    def commit(self) -> None:
        """Unmap chunks of which nothing lives. The pool hears of it with the next call of a round."""
        self._view.tidy([start for start, _ in self._dead()], self.num_ids)

    def _append(self, start: int, samples: Samples) -> None:
        self._view.ask_tidily("append", start, to_arrays(self.codec.encode(samples)))

    def _truncate(self, num_ids: int) -> None:
        if any(start + len(chunk) > num_ids for start, chunk in self._table.items()):
            self._view.ask("truncate", num_ids)
        self._view.sealed = num_ids

    def _mapped(self, start: int, arrays: Arrays) -> None:
        chunk = self._returned(from_arrays(arrays))
        self._table.put(start, chunk)
        self._ids.cover(start, chunk.classes)


class AdoptingStore(Store):
    """A trial's view of rounds that others put into the pool. Ids are the pool's; they live once the trial has them."""

    def __init__(
        self, codec: Codec, num_classes: int, pool: Any, key: str, who: str, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(codec, num_classes, device)
        self._view = PoolView(pool, key, who, self._mapped, self._unmapped)

    def look(self, count: int) -> Samples:
        """The `count` samples behind the last id given out; `append` takes them over, and sends nothing."""
        return self.codec.decode(self._table.gather(torch.arange(self.num_ids, self.num_ids + count))).to(self.device)

    def _append(self, start: int, samples: Samples) -> None:
        self._ids.cover(start, samples.classes)

    def _adopt(self, num_ids: int) -> None:
        """Take over all ids below `num_ids`, as a checkpoint says."""
        for start, chunk in self._table.items():
            if start < num_ids:
                self._ids.cover(start, chunk[: num_ids - start].classes)

    def _dead_starts(self) -> list[int]:
        """First ids of chunks of which nothing lives, and nothing will."""
        return [start for start, chunk in self._dead() if start + len(chunk) <= self.num_ids]

    def _mapped(self, start: int, arrays: Arrays) -> None:
        chunk = self._returned(from_arrays(arrays))
        if start + len(chunk) > self.num_ids or self._ids.any_live(start, len(chunk)):
            self._table.put(start, chunk)

    def _unmapped(self, start: int) -> None:
        if start in dict(self._table.items()):
            self._table.remove(start)


class FilledStore(AdoptingStore):
    """The store of a trial whose producers fill its key, some rounds ahead of it. What it drops goes."""

    def __init__(self, codec: Codec, num_classes: int, pool: Any, key: str, device: str | torch.device = "cpu") -> None:
        super().__init__(codec, num_classes, pool, key, key, device)

    def refresh(self) -> None:
        """See what has come. The one remote call of a round."""
        self._view.ask_tidily("tend")

    def clear_ahead(self) -> None:
        """Remove what the trial has not taken yet: it will be made again."""
        self._truncate(self.num_ids)

    def commit(self) -> None:
        """As of a `PoolStore`."""
        self._view.tidy(self._dead_starts(), self.num_ids)

    def _truncate(self, num_ids: int) -> None:
        self._adopt(num_ids)
        self._view.ask("truncate", num_ids)
        self._view.sealed = min(self._view.sealed, num_ids)
