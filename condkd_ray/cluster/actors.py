"""Actors that outlive a failure: how they are started and called, and how long trials wait for them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from condkd_ray.cluster.lost import is_transient


def lasting_actor(kind: type, *args: Any) -> Any:
    """Start an actor that holds no resources and that Ray restarts when it dies. End it with `ray.kill`."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "DEFAULT"}
    return ray.remote(**options)(kind).remote(*args)


class Stopwatch:
    """Counts the seconds that a trial waits for Ray.

    These are the waits for the pool and for the driver, and the time between the process's last trial and this one. A
    process runs one trial at a time, so it needs one stopwatch.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds counted for the current trial so far."""
        self._idle_since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Start a trial: reset the count to the time since the last trial of this process ended.

        The count starts at 0 for the first trial, because its process has just started.
        """
        now = time.perf_counter()
        self.seconds = 0.0 if self._idle_since is None else now - self._idle_since
        try:
            yield
        finally:
            self._idle_since = time.perf_counter()


WATCH = Stopwatch()
"""The stopwatch of this process."""
T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""Time for which a trial repeats calls to a pool that is being restarted, in seconds."""


class RetryError(Exception):
    """Raised by a call that is to be repeated, from the error that it has dealt with."""


def retry_until_restarted(call: Callable[[], T]) -> T:
    """Return the result of `call`, which calls the pool; repeat the call while the pool restarts.

    Repeats it for up to `PATIENCE_SECONDS`, and then raises the error of the last call. Raises any other error at once.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with WATCH.running():
                return call()
        except RetryError as error:
            if time.monotonic() > deadline:
                raise (error.__cause__ or error) from None
        except (RayError, FileNotFoundError) as error:
            # The pool may just have replaced the file by another one.
            if time.monotonic() > deadline or not (is_transient(error) or isinstance(error, FileNotFoundError)):
                raise
        time.sleep(0.1)


def call_actor(method: Any, *args: Any) -> Any:
    """Return the result of a method of the pool, or of another actor that Ray restarts; see `retry_until_restarted`."""
    return retry_until_restarted(lambda: ray.get(method.remote(*args)))
