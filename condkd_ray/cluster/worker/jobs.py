"""Trials on their way to the workers that run them.

The trials of a sweep are sent to every worker whole, which opens its own alone. Those of a search are not known when
it begins: the driver puts each into an actor, from where its worker takes it.
"""

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from condkd_ray.cluster.pool.actor import lasting_actor
from condkd_ray.cluster.pool.store import ask
from condkd_ray.trial.packing import PreparedRefs
from condkd_ray.trial.plan import PlannedTrial

Job = PlannedTrial[PreparedRefs]
"""A trial as a worker gets it."""


class SweepJobs(Mapping[str, Job]):
    """Jobs by key, each pickled by itself into one array, which Ray hands on without a copy.

    As a dictionary all of them would be built anew by every trial: thousands of trials, thousands of times.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._refs: list[Any] = []
        self._places: dict[str, tuple[int, int]] = {}
        buffer, numbers = io.BytesIO(), {}
        for job in jobs:
            begin = buffer.tell()
            _writer()(buffer, self._refs, numbers).dump(job)
            self._places[job.key] = begin, buffer.tell()
        self._bytes = np.frombuffer(buffer.getvalue(), np.uint8)

    def __getitem__(self, key: str) -> Job:
        begin, end = self._places[key]
        return _Reader(io.BytesIO(self._bytes[begin:end].tobytes()), self._refs).load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@cache
def _writer() -> type:
    """Ray's pickler, which sends a method that a script or a notebook defines by value.

    References to objects go into a list beside: Ray keeps an object only for those in its own messages.
    """
    import ray
    from ray.cloudpickle import Pickler

    class Writer(Pickler):
        def __init__(self, file: io.BytesIO, refs: list[Any], numbers: dict[Any, int]) -> None:
            super().__init__(file)
            self._refs, self._numbers = refs, numbers

        def persistent_id(self, obj: Any) -> int | None:
            """The number of a reference; none for all else."""
            if not isinstance(obj, ray.ObjectRef):
                return None
            if obj not in self._numbers:
                self._numbers[obj] = len(self._refs)
                self._refs.append(obj)
            return self._numbers[obj]

    return Writer


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, refs: list[Any]) -> None:
        super().__init__(file)
        self._refs = refs

    def persistent_load(self, pid: int) -> Any:
        """The reference of that number."""
        return self._refs[pid]


class JobTable:
    """The actor behind `SearchJobs`."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def put(self, job: Job) -> None:
        """Keep a job, in place of one of its key."""
        self._jobs[job.key] = job

    def take(self, key: str) -> Job:
        """The job `key`. Raises `KeyError` where there is none: the actor may have been started again, empty."""
        return self._jobs[key]

    def remove(self, key: str) -> None:
        """Nobody will ask for it again."""
        self._jobs.pop(key, None)


class SearchJobs:
    """Jobs by key, as far as they have been put there. To be made and ended by the driver, and sent to workers.

    Should its actor die, the trial that asks in vain is started again, before which the driver puts its job there anew.
    """

    def __init__(self) -> None:
        self._actor = lasting_actor(JobTable)

    def __getitem__(self, key: str) -> Job:
        return ask(self._actor.take, key)

    def put(self, job: Job) -> None:
        """Keep a job; it is there when this returns."""
        ask(self._actor.put, job)

    def remove(self, key: str) -> None:
        """The trial is over."""
        self._actor.remove.remote(key)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)
