"""The pool: what a draw costs, how long a round is held up, and what one more reader takes of memory."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import psutil
import torch

from benchmark.rows import Measured
from benchmark.worlds import CPUS, digits, prepare, scratch, seconds
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.pool import default_limit, make_pool
from condkd_ray.cluster.stores import WATCH, PoolStore
from condkd_ray.core.samples import Codec, Encoded
from condkd_ray.methods.memory.memory import gathered
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.synthesis import codec

HELD, ROUND, BATCH = 65_536, 512, 256
"""Images in the pool, images a round, images a draw."""
CODE = Codec("unit", (0.5,) * 3, (0.25,) * 3)
READ_BYTES = 500e6


def draw() -> Iterator[Measured]:
    """Draws from the pool against draws from tensors of one's own, by turns: seconds of this thread."""
    ids, places, private = torch.arange(HELD), torch.Generator().manual_seed(0), _random(HELD)

    def rows() -> torch.Tensor:
        return torch.randint(HELD, (BATCH,), generator=places)

    with _pool() as pool:
        stores = {name: _filled(pool, name, HELD, ROUND, seal=name == "after") for name in ("before", "after")}
        draws: dict[str, Callable[[], Any]] = {
            name: lambda store=store: gathered(store, ids[rows()]) for name, store in stores.items()
        }
        draws["own"] = lambda: _picked(private, rows())
        runs = [_by_turns(draws, 300) for _ in range(6)][1:]
        chunks = {name: len(store._table.items()) for name, store in stores.items()}
    for name, bound in (("after", 1.2), ("before", 2.0)):
        what = (
            f"draw of {BATCH} normalised float32 images 3x32x32 of {HELD}, with labels and logits, from the pool "
            f"{name} compaction ({chunks[name]} chunks) / from one private uint8 tensor, and one each of the others, "
            "by `index_select`"
        )
        why = "Ids are looked up in the table of chunks first, and these lie in shared memory, in pages of 4 KiB."
        yield Measured(what, [run[name] / run["own"] for run in runs], "x", "<=", bound, why)


def blocked() -> Iterator[Measured]:
    """Rounds on the digits, their samples in the pool."""
    config = digits(rounds=56, evaluate_every=56)
    config = replace(config, distiller=replace(config.distiller, steps=1))
    prepared, shares = prepare(config), []
    with _pool() as pool:
        store = PoolStore(codec(config, prepared.teacher), prepared.teacher.num_classes, pool, "blocked")
        state = start(config, prepared)
        for _ in range(56):
            begun = WATCH.seconds
            metrics = run_round(config, prepared, state, store)
            store.commit()
            shares.append(100 * (WATCH.seconds - begun) / metrics["time/inversion_seconds"])
    what = (
        "time a trial is blocked a round in the pool (append and refresh, one call) / time of that round's inversion, "
        f"`fast`, digits, {config.inversion.images_per_round} images"
    )
    why = "A round trip to the pool, the file of the chunk and its copy take a few milliseconds whatever the round."
    yield Measured(what, shares[6:], "%", "<=", 3.0, why)


def reader() -> Iterator[Measured]:
    """Processes that each map a whole pool and draw from it."""
    import ray

    with _pool() as pool:
        held = int(READ_BYTES / 3072)
        _filled(pool, "read", held, 2560, seal=True)
        grown = [ray.get(ray.remote(num_cpus=0)(_read).remote(pool, "read", held)) / 1e6 for _ in range(5)]
    what = (
        f"private memory (USS) of one more reader of a pool of {READ_BYTES / 1e6:.0f} MB, all chunks mapped and read, "
        "after 100 draws"
    )
    why = "Five bytes a sample for its class and whether it lives, and the buffers of a draw."
    yield Measured(what, grown, "MB", "<=", 5.0, why)


@contextmanager
def _pool() -> Iterator[Any]:
    import ray

    with scratch() as folder, connect(cpus=CPUS):
        pool = make_pool(folder / "chunks", default_limit())
        try:
            yield pool
        finally:
            ray.kill(pool)


def _filled(pool: Any, key: str, held: int, round: int, *, seal: bool) -> PoolStore:
    """A store with `held` random samples in rounds of `round`; compacted as far as each is in a checkpoint: `seal`."""
    store = PoolStore(CODE, 10, pool, key)
    for first in range(0, held, round):
        store.append(CODE.decode(_random(min(round, held - first))))
        if seal:
            store.commit()
    return store


def _random(count: int) -> Encoded:
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return Encoded(images, torch.randint(10, (count,)), torch.randn(count, 10).half())


def _picked(samples: Encoded, rows: torch.Tensor) -> Any:
    columns = samples.images, samples.labels, samples.logits
    return CODE.decode(Encoded(*(column.index_select(0, rows) for column in columns)))


def _by_turns(calls: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median seconds of this thread of each call, made one after the other `times` times."""
    turns = [{name: seconds(call, time.thread_time) for name, call in calls.items()} for _ in range(times)]
    return {name: median(turn[name] for turn in turns) for name in calls}


def _read(pool: Any, key: str, held: int) -> int:
    """Bytes by which this process's own memory grows by becoming a reader."""
    torch.set_num_threads(1)
    # What any reader has, however small the pool: code, and the buffers of a draw.
    _filled(pool, f"warm {os.getpid()}", BATCH, BATCH, seal=True).gather(torch.arange(BATCH))
    before = psutil.Process().memory_full_info().uss
    store = PoolStore(CODE, 10, pool, key)
    for first in range(0, held, BATCH):
        store.gather(torch.arange(first, min(first + BATCH, held)))
    for _ in range(100):
        store.gather(torch.randint(held, (BATCH,)))
    return psutil.Process().memory_full_info().uss - before
