"""The many ways in which Ray reports that a process, a node or an object is gone, taken as one: it is made again.

Checked against all that `ray.exceptions` of Ray 2.60 has: whatever is a `RayError`, and not what our code raised over
there or while an object was unpickled, is such a report. Of these Tune knows `RayActorError` alone, which
`OutOfMemoryError`, `NodeDiedError`, `WorkerCrashedError` and the family of `ObjectLostError` are not.

What our code raised comes as a `RayTaskError` that holds it; an exception that cannot be pickled there as a bare
`RayError` in it; one that cannot be unpickled here, as of a class whose `__init__` wants two arguments, as an
`UnserializableException` with its trace as text. An object that cannot be unpickled, as where a module is missing, is a
`RaySystemError` with the exception that this raised as `client_exc`. Made again, all of these would come again.
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

SHORT = "too little memory"
"""What the words on a process have that was ended because the memory of its machine ran short."""
TRIES = 3
"""Times that a call of the driver is made whose process, or node, is lost in it (our choice)."""
FINAL = (
    *(RayActorError, GetTimeoutError, TaskCancelledError, RuntimeEnvSetupError, LocalRayletDiedError),
    *(ActorUnschedulableError, TaskUnschedulableError, ActorPlacementGroupRemoved, TaskPlacementGroupRemoved),
    *(ActorAlreadyExistsError, ActorHandleNotFoundError, AuthenticationError, CrossLanguageError),
    *(OufOfBandObjectRefSerializationException, ReferenceCountingAssertionError, ObjectFreedError),
)
"""Reports after which the same call would fail again: what it needs is gone for good, or is not to be had."""
ROOM = (ObjectStoreFullError, OutOfDiskError)
OF_CODE = (UnserializableException, UserCodeException)
"""What stands for an exception of our code, beside a bare `RayError`."""
T = TypeVar("T")


def is_lost(error: BaseException) -> bool:
    """Whether something of Ray's was missing: a process, node or object. Not what code raised, here or over there."""
    inner = _raised(error)
    return isinstance(inner, RayError) and not _of_code(inner) and not isinstance(inner, ROOM)


def passes(error: BaseException) -> bool:
    """Whether the same call may succeed once what it missed was made again; an actor that has died for good is not."""
    inner = _raised(error)
    final = isinstance(inner, FINAL) and not isinstance(inner, ActorUnavailableError)
    return is_lost(inner) and not final


def in_words(error: BaseException) -> str:
    """What is gone, and why, in one line."""
    inner = _raised(error)
    if isinstance(inner, UnserializableException):
        lines = re.findall(r"^[A-Za-z_][\w.<>]*(?:: .*)?$", str(inner), re.MULTILINE)
        return f"{lines[-1] if lines else first_line(inner)} (an exception that cannot be unpickled)"
    if not isinstance(inner, OutOfMemoryError):
        return first_line(inner)
    text = str(inner)
    used = re.search(r"was ([\d.]+)\s?GB used / ([\d.]+)\s?GB", text)
    took = [float(found) for found in re.findall(r"memory used=([\d.]+)\s?GB", text)]
    there = f", {used[1]} of {used[2]} GB used" if used else ""
    ended = f" when it took {max(took):g} GB" if took else ""
    return f"its machine had {SHORT}{there}, so Ray ended it{ended}"


def gigabytes(words: str) -> float:
    """What a process took that was ended, as `in_words` tells it; 0 where it does not."""
    found = re.search(r"when it took ([\d.]+) GB", words)
    return float(found[1]) if found else 0.0


def full(error: BaseException) -> str | None:
    """Why Ray has no room for an object, in one line, if `error` is about that."""
    inner = _raised(error)
    return in_words(inner) if isinstance(inner, ROOM) else None


def patient(call: Callable[[], T], what: str) -> T:
    """What a call of the driver returns, made anew where a process or node is lost in it, `TRIES` times in all.

    Raises `StorageFullError` where Ray has no room for its objects, and `ClusterError` in the end, which comes at once
    where the call would fail again. What code has raised over there is raised.
    """
    for left in reversed(range(TRIES)):
        try:
            return call()
        except RayError as error:
            if (reason := full(error)) is not None:
                raise StorageFullError(f"Ray's objects: {reason}") from error
            if not is_lost(error):
                raise
            if not passes(error):
                raise ClusterError(f"{what}: {in_words(error)}") from error
            if not left:
                raise ClusterError(f"{what}: {in_words(error)}, {TRIES} times in a row") from error
    raise AssertionError


def take_as_lost(manager: RayActorManager) -> None:
    """Have a manager of Tune's take each report of Ray as that of a lost actor; it would end the sweep on most.

    A process that may still be there is ended: else two would run one trial. What our code raised, and cannot be
    unpickled, it takes as any exception of our code: the process lives.
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
            # It begins as Ray wants it to: else it is not taken for one.
            trace = getattr(exception, "traceback_str", None) or f"Traceback (most recent call last):\n{exception}"
            words = f"{type(exception).__name__}: {in_words(exception)}"
            return RayTaskError("trial", f"{trace}\n{words}", exception, proctitle="ray::trial")
        actor, _ = manager._live_actors_to_ray_actors_resources.get(tracked_actor, (None, None))
        if actor is not None:
            ray.kill(actor)
        return exception if isinstance(exception, RayActorError) else RayActorError(error_msg=in_words(exception))

    # Of this manager alone: Tune may be at work for others in this process.
    manager._actor_task_failed, manager._actor_start_failed = task_failed, start_failed  # pyright: ignore


def _of_code(error: BaseException) -> bool:
    """Whether it is what Ray makes of an exception that our code raised, or that was raised as an object was unpickled.

    Unpickling may ask for another object, which is gone.
    """
    cause = getattr(error, "client_exc", None)
    unpickled = isinstance(error, RaySystemError) and isinstance(cause, Exception) and not is_lost(cause)
    return unpickled or type(error) is RayError or isinstance(error, OF_CODE)


def _raised(error: BaseException) -> BaseException:
    """What was raised first: `error`, or what it wraps."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error
