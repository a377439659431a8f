"""Jobs of trials that nobody knows when a search begins: the driver puts them up, trials take their own."""

from __future__ import annotations

from typing import Any

from condkd_ray.cluster.pool.store import patiently
from condkd_ray.cluster.worker.jobs import Job


class JobBoard:
    """The actor; see `Board`."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def put(self, key: str, job: Job) -> None:
        """Put up a job, or put it up again."""
        self._jobs[key] = job

    def take(self, key: str) -> Job:
        """The job of a trial. Raises `KeyError` where there is none: the actor may have been started again, empty."""
        return self._jobs[key]

    def remove(self, key: str) -> None:
        """Nobody will ask for it again."""
        self._jobs.pop(key, None)


class Board:
    """Jobs by key, as far as they have been put up. To be made and ended by the driver, and sent to trials.

    Should its actor die, the trial that asks in vain is started again, before which the driver puts up its job again.
    """

    def __init__(self) -> None:
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
        self._actor: Any = ray.remote(**options)(JobBoard).remote()

    def __getitem__(self, key: str) -> Job:
        import ray

        job: Any = patiently(lambda: ray.get(self._actor.take.remote(key)))
        return job

    def put(self, key: str, job: Job) -> None:
        """Put up a job; it is there when this returns."""
        import ray

        patiently(lambda: ray.get(self._actor.put.remote(key, job)))

    def remove(self, key: str) -> None:
        """The trial is over."""
        self._actor.remove.remote(key)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)
