"""Chunks that tests write and enter into a pool, as a trial or a producer does."""

from typing import Any

from condkd_ray.cluster.pool.chunks import write, write_unnamed
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.memory.store import to_arrays


def append(pool: Any, codec: Codec, key: str, start: int, samples: Samples) -> None:
    """Write a chunk, and enter it as the trial that owns the key does."""
    import ray

    written = write(ray.get(pool.folder.remote()) / key, start, to_arrays(codec.encode(samples)))
    ray.get(pool.append.remote(key, start, written))


def fill(pool: Any, codec: Codec, key: str, start: int, samples: Samples) -> None:
    """Write a chunk, and enter it as a producer does."""
    import ray

    described = write_unnamed(ray.get(pool.folder.remote()) / key, to_arrays(codec.encode(samples)))
    ray.get(pool.fill.remote(key, start, **described))
