"""The jobs of a sweep, which every trial is sent whole: from shared memory, of which it opens its own alone."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from condkd_ray.cluster.worker.object_store import Parcel
from condkd_ray.core.config import Tree
from condkd_ray.trial.identity import Scope


@dataclass(frozen=True)
class Job:
    """A trial to be run: its config as a tree, what it was prepared with, and where its samples lie in the pool."""

    label: str
    tree: Tree
    parcel: Parcel
    scope: Scope
    pool_key: str
    heir_of: str = ""
    """Key of the trial whose state and samples it takes over at its start; see `condkd_ray.trial.transfer`."""
    rests: int | None = None
    """The round after which it rests, leaving all it has for its heirs."""


class Jobs(Mapping[str, Job]):
    """Jobs by key, each pickled by itself into one array, which Ray hands on without a copy.

    As a dictionary all of them would be built anew by every trial: thousands of trials, thousands of times.
    """

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._refs: list[Any] = []
        self._places: dict[str, tuple[int, int]] = {}
        buffer, numbers = io.BytesIO(), {}
        for key, job in jobs.items():
            begin = buffer.tell()
            _Writer(buffer, self._refs, numbers).dump(job)
            self._places[key] = begin, buffer.tell()
        self._bytes = np.frombuffer(buffer.getvalue(), np.uint8)

    def __getitem__(self, key: str) -> Job:
        begin, end = self._places[key]
        return _Reader(io.BytesIO(self._bytes[begin:end].tobytes()), self._refs).load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Writer(pickle.Pickler):
    """References to objects go into a list beside: only Ray's own pickling knows of them and keeps the objects."""

    def __init__(self, file: io.BytesIO, refs: list[Any], numbers: dict[Any, int]) -> None:
        import ray

        super().__init__(file)
        self._kind, self._refs, self._numbers = ray.ObjectRef, refs, numbers

    def persistent_id(self, obj: Any) -> int | None:
        """The number of a reference; none for all else."""
        if not isinstance(obj, self._kind):
            return None
        if obj not in self._numbers:
            self._numbers[obj] = len(self._refs)
            self._refs.append(obj)
        return self._numbers[obj]


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, refs: list[Any]) -> None:
        super().__init__(file)
        self._refs = refs

    def persistent_load(self, pid: int) -> Any:
        """The reference of that number."""
        return self._refs[pid]
