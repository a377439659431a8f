"""Classification of Ray's errors: those that report a lost process, node or object lead to a retry.

Checked against all of `ray.exceptions` of Ray 2.60: each `RayError` is such a report, unless our code raised it
remotely or it was raised while an object was unpickled. Tune handles only `RayActorError` among these reports.
`OutOfMemoryError`, `NodeDiedError`, `WorkerCrashedError` and the family of `ObjectLostError` are not subclasses of it.

An exception of our code arrives as a `RayTaskError` that contains it. An exception that its process cannot pickle
arrives inside a bare `RayError`. An exception that cannot be unpickled here, for example because its class needs two
arguments, arrives as an `UnserializableException` with its trace as text. An object that cannot be unpickled, for
example because a module is missing, raises a `RaySystemError` with the exception as `client_exc`. A retry would raise
all of these again.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.air.execution._internal import RayActorManager
from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    AuthenticationError,
    CrossLanguageError,
    GetTimeoutError,
    LocalRayletDiedError,
    ObjectFreedError,
    ObjectStoreFullError,
    OufOfBandObjectRefSerializationException,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    ReferenceCountingAssertionError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    UnserializableException,
    UserCodeException,
)

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import ClusterError
from condkd_ray.core.storage import StorageFullError
from condkd_ray.core.units import UNIT_BYTES

SHORT = "too little memory"
"""Part of every message about a process that was ended because its machine ran short of memory."""
TRIES = 3
"""Number of attempts at a call of the driver if a process or node is lost during it (our choice)."""
FINAL = (
    *(RayActorError, GetTimeoutError, TaskCancelledError, RuntimeEnvSetupError, LocalRayletDiedError),
    *(ActorUnschedulableError, TaskUnschedulableError, ActorPlacementGroupRemoved, TaskPlacementGroupRemoved),
    *(ActorAlreadyExistsError, ActorHandleNotFoundError, AuthenticationError, CrossLanguageError),
    *(OufOfBandObjectRefSerializationException, ReferenceCountingAssertionError, ObjectFreedError),
)
"""Reports after which the same call would fail again: something that it needs is gone for good or not available."""
ROOM = (ObjectStoreFullError, OutOfDiskError)
"""Reports that Ray has no room for an object."""
OF_CODE = (UnserializableException, UserCodeException)
"""Types, in addition to a bare `RayError`, in which Ray wraps an exception of our code."""
T = TypeVar("T")


def is_lost(error: BaseException) -> bool:
    """Return whether `error` reports that Ray lost a process, node or object.

    False for an exception of our code, raised here or remotely, and for a report of a full object store or disk.
    """
    inner = _raised(error)
    return isinstance(inner, RayError) and not _of_code(inner) and not isinstance(inner, ROOM)


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed once Ray has recreated the lost process, node or object.

    False if an actor has died for good.
    """
    inner = _raised(error)
    final = isinstance(inner, FINAL) and not isinstance(inner, ActorUnavailableError)
    return is_lost(inner) and not final


def in_words(error: BaseException) -> str:
    """Return one line of text that states what is lost, and why."""
    inner = _raised(error)
    if isinstance(inner, UnserializableException):
        lines = re.findall(r"^[A-Za-z_][\w.<>]*(?:: .*)?$", str(inner), re.MULTILINE)
        return f"{lines[-1] if lines else first_line(inner)} (an exception that cannot be unpickled)"
    if not isinstance(inner, OutOfMemoryError):
        return first_line(inner)
    text = str(inner)
    used = re.search(r"was ([\d.]+)\s?GB used / ([\d.]+)\s?GB", text)
    took = [_decimal(found) for found in re.findall(r"memory used=([\d.]+)\s?GB", text)]
    there = f", {_decimal(used[1]):.2f} of {_decimal(used[2]):.2f} GB used" if used else ""
    ended = f" when it took {max(took):.2f} GB" if took else ""
    return f"its machine had {SHORT}{there}, so Ray ended it{ended}"


def gigabytes(text: str) -> float:
    """Return the memory in GB of a process that Ray ended, parsed from a text of `in_words`; 0 if it states none."""
    found = re.search(r"when it took ([\d.]+) GB", text)
    return float(found[1]) if found else 0.0


def _decimal(text: str) -> float:
    """Return a size in GB of 10^9 bytes, as in all other messages. `text`: the size in Ray's unit GB, of 2^30 bytes."""
    return float(text) * UNIT_BYTES["GiB"] / UNIT_BYTES["GB"]


def full(error: BaseException) -> str | None:
    """Return one line that states why Ray has no room for an object; None if `error` is not about this."""
    inner = _raised(error)
    return in_words(inner) if isinstance(inner, ROOM) else None


def with_retries(call: Callable[[], T], what: str) -> T:
    """Return the result of a call of the driver, with at most `TRIES` attempts if a process or node is lost.

    `what`: name of the call in messages. Raises `StorageFullError` if Ray has no room for its objects, and
    `ClusterError` after the last attempt, or at once if the call would fail again. An exception of our code that was
    raised remotely is raised here.
    """
    for left in reversed(range(TRIES)):
        try:
            return call()
        except RayError as error:
            if (reason := full(error)) is not None:
                raise StorageFullError(f"Ray's objects: {reason}") from error
            if not is_lost(error):
                raise
            if not is_transient(error):
                raise ClusterError(f"{what}: {in_words(error)}") from error
            if not left:
                raise ClusterError(f"{what}: {in_words(error)}, {TRIES} times in a row") from error
    raise AssertionError


def treat_as_lost(manager: RayActorManager) -> None:
    """Patch Tune's actor manager so that it treats each report of Ray as a lost actor; most would end the sweep.

    A process that may still run is killed, as otherwise two processes would run one trial. An exception of our code
    that cannot be unpickled is passed on as an ordinary exception; its process continues.
    """
    if "_actor_task_failed" in vars(manager):
        return
    tasks, starts = manager._actor_task_failed, manager._actor_start_failed

    def task_failed(tracked_actor_task: Any, exception: Exception) -> None:
        tasks(tracked_actor_task, as_actors(tracked_actor_task._tracked_actor, exception))

    def start_failed(tracked_actor: Any, exception: Exception) -> None:
        starts(tracked_actor, as_actors(tracked_actor, exception))

    def as_actors(tracked_actor: Any, exception: Exception) -> Exception:
        if not isinstance(exception, RayError) or isinstance(exception, RayTaskError):
            return exception
        if _of_code(exception):
            # The text must begin as Ray's traces do; otherwise Tune does not recognise it as a trace.
            trace = getattr(exception, "traceback_str", None) or f"Traceback (most recent call last):\n{exception}"
            last_line = f"{type(exception).__name__}: {in_words(exception)}"
            return RayTaskError("trial", f"{trace}\n{last_line}", exception, proctitle="ray::trial")
        actor, _ = manager._live_actors_to_ray_actors_resources.get(tracked_actor, (None, None))
        if actor is not None:
            ray.kill(actor)
        return exception if isinstance(exception, RayActorError) else RayActorError(error_msg=in_words(exception))

    # Patch this manager only: Tune may run for other callers in this process.
    manager._actor_task_failed, manager._actor_start_failed = task_failed, start_failed  # pyright: ignore


def _of_code(error: BaseException) -> bool:
    """Return whether Ray made `error` from an exception that our code or the unpickling of an object raised.

    False if the unpickling failed because it needed another object that is lost.
    """
    cause = getattr(error, "client_exc", None)
    unpickled = isinstance(error, RaySystemError) and isinstance(cause, Exception) and not is_lost(cause)
    return unpickled or type(error) is RayError or isinstance(error, OF_CODE)


def _raised(error: BaseException) -> BaseException:
    """Return the innermost error: `error` itself, or the error that it wraps."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error
