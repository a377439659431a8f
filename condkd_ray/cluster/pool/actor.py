"""The shared pool: one actor that owns all chunks of a sweep.

Arrays come by value; each chunk is a file first and then a copy that others map. Trials own nothing, so nothing is lost
with them; a pool that was restarted maps its files again.
"""

import json
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from condkd_ray.cluster.pool.chunk_cache import ChunkCache, Placed
from condkd_ray.cluster.pool.leases import Leases
from condkd_ray.core.method import Metrics, require
from condkd_ray.core.storage import Location, get_text, put_text
from condkd_ray.methods.memory.store import Arrays
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.plan import Scope

STATUS = "pool.json"
"""What the pool holds, as it has last written it down, beside its chunks."""
STATUS_SECONDS = 1.0
Table = tuple[str, dict[int, Placed] | None]
"""A version, and all chunks of a key by first id; None where the asker has that version."""


class Taken(NamedTuple):
    """What the pool says to one who wants a round. Where it is made, `metrics` are those of its making."""

    table: Table
    metrics: Metrics | None
    turn: bool
    """Whether it is not made, and the asker's to make."""


class SyntheticPool:
    """Chunks by key and first id. Runs as an actor, see `make_pool`; every method may be called twice without harm.

    A key belongs to one trial (`append`; `fill` and `tend` where producers make its images), or is shared: then its
    images come in rounds, each made once (`take`, `deliver`), or from all its trials as they come (`contribute`).
    """

    def __init__(self, folder: Location, limit: int) -> None:
        self._chunks = ChunkCache(folder, limit)
        self._rounds: dict[str, dict[str, Any]] = {}
        self._leases = Leases()
        self._readers: dict[str, dict[str, int]] = {}
        # A restarted pool counts anew and has put every object anew: its versions must equal none of before.
        self._epoch = secrets.token_hex(8)
        self._told = 0.0

    def append(
        self, key: str, start: int, arrays: Arrays, *, have: str = "", drop: Sequence[int] = (), sealed: int = 0
    ) -> Table:
        """Keep the chunk whose first id is `start`, in place of the one there.

        `drop`: first ids of chunks that may go. `sealed`: ids below it are in a checkpoint; only chunks of such are
        joined, as others may have to go again.
        """
        self._chunks.place(key, start, arrays)
        return self.tend(key, have, drop=drop, sealed=sealed)

    def fill(self, key: str, start: int, arrays: Arrays) -> None:
        """Keep the chunk whose first id is `start`, in whatever order they come. One that is there already stays."""
        if start not in self._chunks.open(key):
            self._chunks.place(key, start, arrays)

    def tend(self, key: str, have: str = "", *, drop: Sequence[int] = (), sealed: int = 0) -> Table:
        """Drop and join chunks, as in `append`, without a new one."""
        self.drop_chunks(key, drop)
        self._chunks.join(key, sealed)
        return self.table(key, have, key)

    def table(self, key: str, have: str = "", who: str = "") -> Table:
        """Where the chunks of `key` are."""
        chunks = self._chunks.open(key)
        if who:
            self._readers.setdefault(key, {}).setdefault(who, 0)
        self._tell()
        version = f"{self._epoch}/{self._chunks.changes[key]}"
        return version, None if version == have else chunks

    def drop_chunks(self, key: str, starts: Sequence[int]) -> None:
        """Remove chunks by first id; those already gone are passed over."""
        for start in set(starts) & set(self._chunks.open(key)):
            self._chunks.remove(key, start)

    def truncate(self, key: str, num_ids: int, have: str = "") -> Table:
        """Remove all ids from `num_ids` on."""
        self._chunks.truncate(key, num_ids)
        return self.table(key, have)

    def take(self, key: str, round: int, who: str, have: str = "") -> Taken:
        """Round `round` of the shared `key`, the first being 0; or whether `who` is to make it."""
        made = self._made(key)["rounds"]
        if round < len(made):
            readers = self._readers.setdefault(key, {})
            readers[who] = readers.get(who, 0) + (made[round]["who"] != who)
            return Taken(self.table(key, have, who), made[round]["metrics"], False)
        return Taken(self.table(key, have, who), None, self._leases.claim(key, who))

    def deliver(self, key: str, round: int, who: str, arrays: Arrays, metrics: Metrics, have: str = "") -> Taken:
        """Keep a round that was missing. One that is there already stays: its maker was given up too early."""
        log = self._made(key)
        made = log["rounds"]
        if round == len(made):
            start = made[-1]["stop"] if made else 0
            self._chunks.place(key, start, arrays)
            made.append({"who": who, "stop": start + len(arrays[1]), "metrics": metrics})
            self._write_log(key)
            self._chunks.join(key, made[-1]["stop"])
        return self.take(key, round, who, have)

    def contribute(self, key: str, who: str, round: int, arrays: Arrays, have: str = "") -> tuple[Table, list[int]]:
        """Add a trial's round to what all trials of `key` draw from, and see what others have added since its last.

        Returns first ids of chunks, its own at the end. What it has seen in a round it sees again, should it ask again;
        a round it has given already is not taken a second time.
        """
        log = self._made(key)
        views, given = log["views"].setdefault(who, []), log["given"].setdefault(who, [])
        if round == len(given):
            chunks = self._chunks.open(key)
            start = max((first + placed.size for first, placed in chunks.items()), default=0)
            self._chunks.place(key, start, arrays)
            given.append(start)
        if round == len(views):
            seen = {start for view in views for start in view}
            others = [start for start in self._chunks.open(key) if start not in seen and start != given[round]]
            views.append([*others, given[round]])
            readers = self._readers.setdefault(key, {})
            readers[who] = readers.get(who, 0) + len(others)
        self._write_log(key)
        return self.table(key, have, who), views[round]

    def seen(self, key: str, who: str, rounds: int) -> list[int]:
        """First ids of the chunks `who` had seen after `rounds` rounds, in that order."""
        return [start for view in self._made(key)["views"].get(who, [])[:rounds] for start in view]

    def claim(self, key: str, who: str) -> bool:
        """A sign of life of one who makes the rounds of `key`; whether these still are its to make."""
        return self._leases.claim(key, who)

    def release(self, key: str, who: str) -> None:
        """`who` makes no more rounds of `key`."""
        self._leases.release(key, who)

    def inherit(self, key: str, source: str) -> None:
        """Give `key` what `source` holds, in place of any it has."""
        self._chunks.copy(key, source)

    def forget(self, key: str) -> None:
        """Free all objects of `key` and delete its files."""
        self._chunks.forget(key)
        self._rounds.pop(key, None)
        self._tell()

    def stats(self) -> dict[str, int]:
        """Keys in use, their chunks, samples and bytes, how many bytes of them lie on disk alone, or ever came to."""
        found = [self._chunks.sizes(key) for key in self._chunks.keys]
        names = ("chunks", "samples", "bytes", "spilled_bytes")
        sums = {name: sum(sizes[name] for sizes in found) for name in names}
        return {"keys": len(found), "shed": self._chunks.shed} | sums

    def describe(self) -> list[dict[str, Any]]:
        """For each key: sizes, rounds made, who reads it, who makes it, and how often a trial was spared a round."""
        return [
            {
                "key": key,
                **self._chunks.sizes(key),
                "rounds": len(self._rounds.get(key, {"rounds": []})["rounds"]),
                "readers": len(self._readers.get(key, {})),
                "hits": sum(self._readers.get(key, {}).values()),
                "maker": self._leases.holder(key),
            }
            for key in self._chunks.keys
        ]

    def _made(self, key: str) -> dict[str, Any]:
        """What is written down of a shared key's rounds; at first use, from its file."""
        if key not in self._rounds:
            path = self._chunks.folder / key / "rounds.json"
            empty: dict[str, Any] = {"rounds": [], "views": {}, "given": {}}
            self._rounds[key] = json.loads(get_text(path)) if path.is_file() else empty
            self._drop_unknown(key, self._rounds[key])
        return self._rounds[key]

    def _drop_unknown(self, key: str, log: dict[str, Any]) -> None:
        """Remove chunks that are not written down: whoever made them has not heard that they are kept."""
        if log["rounds"]:
            self._chunks.truncate(key, log["rounds"][-1]["stop"])
            return
        known = {start for starts in log["given"].values() for start in starts}
        self.drop_chunks(key, sorted(set(self._chunks.open(key)) - known))

    def _write_log(self, key: str) -> None:
        put_text(self._chunks.folder / key / "rounds.json", json.dumps(self._rounds[key]))

    def _tell(self) -> None:
        """Write down what is held, now and then."""
        if time.monotonic() - self._told > STATUS_SECONDS:
            self._told = time.monotonic()
            status = {"limit": self._chunks.limit, "keys": self.describe(), "time": time.time()}
            put_text(self._chunks.folder / STATUS, json.dumps(status))


def make_pool(folder: Location, limit: int) -> Any:
    """The pool actor of a sweep, with its files under `folder`, which all nodes must see. End it with `ray.kill`.

    `limit`: bytes of its copies in shared memory. To be called by the driver: made inside a trial it would die with
    that trial's resources.
    """
    return lasting_actor(SyntheticPool, folder, limit)


def lasting_actor(kind: type, *args: Any) -> Any:
    """An actor that holds no resources, and is started again where it dies. End it with `ray.kill`."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
    return ray.remote(**options)(kind).remote(*args)


def default_limit() -> int:
    """Bytes of samples that the nodes' shared memory bears: 60 % of the smallest object store, as others use it too."""
    import ray

    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(0.6 * min(stores))


def chunk_bytes(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> int:
    """Bytes of a round's images as the pool keeps them: with labels, and logits where the trial or a sharer reads them.

    `scope`: the one the trial really has.
    """
    pixels, logits = math.prod(prepared.teacher.image_shape), 2 * prepared.teacher.num_classes
    width = 1 if config.inversion.pixel_space == "unit" else 2
    kept = config.keeps_logits or scope != "trial"
    return config.inversion.images_per_round * (pixels * width + (logits if kept else 0) + 8)


def check_limit(limit: int, chunks: Sequence[int]) -> None:
    """Raise `InputError` where not even one round's images, of so many bytes, would fit."""
    require(limit >= max(chunks), "pool limit", f"{limit} bytes", f"at least the {max(chunks)} bytes of a round")
