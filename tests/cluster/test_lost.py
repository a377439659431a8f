"""Classification of Ray's errors; processes are really lost in `test_faults.py` and `test_memory_shortage.py`."""

import importlib
import inspect
import os
import signal

import pytest
from ray import exceptions
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    UnserializableException,
    WorkerCrashedError,
)

from condkd_ray.cluster import actors
from condkd_ray.cluster.actors import retry_until_restarted
from condkd_ray.cluster.lost import TRIES, full, gigabytes, in_words, is_lost, is_transient, treat_as_lost, with_retries
from condkd_ray.cluster.sweep import reason_in
from condkd_ray.core.method import ClusterError
from condkd_ray.core.storage import StorageFullError

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: ee3e)
was 3.13GB used / 4.00GB limit (0.782162)
OOM kill reason: Memory usage 3229642752B exceeded threshold
Selected to kill: (Actor(2f1b): required resources={CPU: 1}, pid=11030, actual memory used=0.45GB, worker ID=65ad)
(Actor(838b): required resources={CPU: 1}, pid=11031, actual memory used=0.50GB, worker ID=fc99)"""
ERRORS = {
    "memory": OutOfMemoryError(KILLED.replace("\nwas", " was")),
    "node": NodeDiedError("the node is gone"),
    "worker": WorkerCrashedError(),
    "unavailable": ActorUnavailableError("for the moment", None),
    "object": ObjectLostError("00", None, ""),
    "owner": OwnerDiedError("00", None, ""),
}


def raised_remotely(cause: Exception) -> RayTaskError:
    return RayTaskError("call", "trace", cause)


FINAL = [
    *(ActorDiedError(), GetTimeoutError("late"), raised_remotely(KeyError("lost"))),
    *(exceptions.RuntimeEnvSetupError("no pip"), exceptions.TaskCancelledError()),
    *(exceptions.TaskUnschedulableError("too large"), exceptions.ActorUnschedulableError("too large")),
    RaySystemError(ModuleNotFoundError("own"), "trace"),
    *(exceptions.LocalRayletDiedError(), exceptions.TaskPlacementGroupRemoved()),
    *(exceptions.ActorPlacementGroupRemoved(), exceptions.AuthenticationError("no token")),
    *(exceptions.ActorHandleNotFoundError("none"), exceptions.ObjectFreedError("00", None, "")),
    UnserializableException("ray.exceptions.RayTaskError: ray::call()\n  File\nown.TwoError: 1 and 2"),
]


def test_every_error_of_ray_is_a_loss_a_full_store_or_an_error_of_code():
    kinds = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, RayError)]
    assert len(kinds) > 35
    for kind in kinds:
        error = kind.__new__(kind)
        if issubclass(kind, RayTaskError):
            continue
        store = issubclass(kind, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError)
        # These contain or describe an error that code raised.
        code = kind is RayError or issubclass(kind, UnserializableException | exceptions.UserCodeException)
        assert is_lost(error) == (not code and not store), kind


def test_an_error_while_an_object_is_unpickled_is_no_loss():
    for error in (
        RaySystemError(ModuleNotFoundError("own"), "trace"),
        raised_remotely(RaySystemError(ValueError("own"))),
    ):
        assert not is_lost(error)
        assert not is_transient(error)
    assert is_lost(RaySystemError("the raylet was killed"))
    # Unpickling may need another object, which is lost.
    assert is_lost(RaySystemError(ERRORS["object"], "trace"))


@pytest.mark.parametrize("name", ERRORS)
def test_a_loss_inside_a_remote_call_is_a_loss_and_an_error_of_code_is_none(name):
    assert is_lost(ERRORS[name])
    assert is_lost(raised_remotely(ERRORS[name]))
    assert is_lost(raised_remotely(raised_remotely(ERRORS[name])))
    assert not is_lost(raised_remotely(ValueError("its own")))
    # This is Ray's error for an exception that cannot be pickled.
    assert not is_lost(raised_remotely(RayError("isn't serializable")))
    assert not is_lost(OSError("here"))


def test_a_loss_is_summarised_in_one_line_with_the_memory_of_the_process():
    assert in_words(ERRORS["node"]) == "the node is gone"
    text = in_words(raised_remotely(ERRORS["memory"]))
    assert text == "its machine had too little memory, 3.36 of 4.29 GB used, so Ray ended it when it took 0.54 GB"
    assert gigabytes(text) == 0.54
    assert gigabytes(in_words(ERRORS["node"])) == 0
    assert "\n" not in in_words(ERRORS["owner"])
    assert in_words(OutOfMemoryError("in other words")) == "its machine had too little memory, so Ray ended it"


@pytest.mark.parametrize("name", ERRORS)
def test_a_call_of_the_pool_is_repeated_after_any_loss(name):
    results = iter([ERRORS[name], raised_remotely(ERRORS[name]).as_instanceof_cause(), "there"])

    def call() -> str:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    assert retry_until_restarted(call) == "there"


@pytest.mark.parametrize("error", FINAL)
def test_a_call_with_a_permanent_error_is_not_repeated(error, monkeypatch):
    monkeypatch.setattr(actors, "PATIENCE_SECONDS", 3600)
    assert not is_transient(error)

    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        retry_until_restarted(call)


def failing(*errors: Exception):
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "there"

    return call


def test_a_call_of_the_driver_is_repeated_and_then_fails_with_one_sentence():
    assert with_retries(failing(*[ERRORS["node"]] * (TRIES - 1)), "asking") == "there"
    with pytest.raises(ClusterError, match=f"^asking: its machine had too little memory.*, {TRIES} times in a row$"):
        with_retries(failing(*[ERRORS["memory"]] * TRIES), "asking")
    with pytest.raises(StorageFullError, match=r"^Ray's objects: no more room"):
        with_retries(failing(ObjectStoreFullError("no more room\nfor it")), "asking")
    with pytest.raises(RayTaskError):
        with_retries(failing(raised_remotely(ValueError("its own"))), "asking")
    assert full(raised_remotely(ObjectStoreFullError("no more room"))).startswith("no more room")
    assert full(ERRORS["node"]) is None


def test_a_call_of_the_driver_with_a_permanent_error_is_made_once():
    for error in FINAL:
        calls = failing(error, error)
        kinds = (ClusterError, type(error))
        with pytest.raises(kinds) as caught:
            with_retries(calls, "asking")
        # The second error is left, so there was one call.
        with pytest.raises(type(error)):
            calls()
        assert isinstance(caught.value, ClusterError) == is_lost(error)
        assert not str(caught.value).endswith("in a row")


def other() -> type:
    """Return an actor whose errors and results cannot be unpickled; as a local class, Ray sends its code along."""

    class TwoError(Exception):
        """An exception that can be pickled and not unpickled, as many others."""

        def __init__(self, first, second):
            super().__init__(f"{first} and {second}")

    class Gone:
        """An object whose module is missing where it is unpickled."""

        def __reduce__(self):
            return importlib.import_module, ("no_such_module_of_ours",)

    class Other:
        def raises(self):
            raise TwoError(1, 2)

        def returns(self):
            return Gone()

        def pid(self):
            return os.getpid()

    return Other


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("raises", "cluster.test_lost.TwoError: 1 and 2 (an exception that cannot be unpickled)"),
        ("returns", "System error: No module named 'no_such_module_of_ours'"),
    ],
)
def test_an_error_of_unpickling_is_reported_with_its_cause_and_is_no_loss(cluster, method, reason, monkeypatch):
    import ray
    from ray.air.execution import FixedResourceManager, ResourceRequest
    from ray.air.execution._internal import RayActorManager

    errors, ready = [], []
    manager = RayActorManager(FixedResourceManager({"CPU": 1}))
    treat_as_lost(manager)
    request = ResourceRequest([{"CPU": 0.01}])
    actor = manager.add_actor(other(), {}, request, on_error=lambda actor, error: errors.append("lost"))
    manager.schedule_actor_task(actor, "pid", on_result=lambda actor, pid: ready.append(pid))
    manager.schedule_actor_task(actor, method, on_error=lambda actor, error: errors.append(error))
    for _ in range(60):
        if not (errors and ready):
            manager.next(timeout=1)
    (error,) = errors
    assert isinstance(error, RayTaskError)
    assert not is_lost(error)
    assert in_words(error) == reason
    # Tune actors this text, which becomes the reason of a failed trial.
    assert reason in reason_in(f"Failure # 1 (occurred at 2026-11-29)\n{error}")
    # The process of the actor is still alive.
    handle, _ = manager._live_actors_to_ray_actors_resources[actor]
    assert ray.get(handle.pid.remote(), timeout=30) == ready[0]
    # A call is not repeated.
    monkeypatch.setattr(actors, "PATIENCE_SECONDS", 3600)
    for retrying in (retry_until_restarted, lambda call: with_retries(call, "asking")):
        with pytest.raises((RaySystemError, UnserializableException)):
            retrying(lambda: ray.get(getattr(handle, method).remote()))
    ray.kill(handle)


@pytest.mark.parametrize("name", ERRORS)
def test_each_loss_is_reported_to_tune_as_the_death_of_an_actor_which_is_ended(cluster, name):
    import ray
    from ray.air.execution import FixedResourceManager, ResourceRequest
    from ray.air.execution._internal import RayActorManager
    from ray.air.execution._internal.tracked_actor_task import TrackedActorTask

    class Sleeper:
        def sleep(self) -> None:
            import time

            time.sleep(600)

    reports = []
    manager = RayActorManager(FixedResourceManager({"CPU": 1}))
    treat_as_lost(manager)
    treat_as_lost(manager)
    actor = manager.add_actor(
        Sleeper,
        {},
        ResourceRequest([{"CPU": 0.01}]),
        on_start=lambda actor: reports.append("started"),
        on_error=lambda actor, error: reports.append(error),
    )
    while not reports:
        manager.next(timeout=1)
    handle, _ = manager._live_actors_to_ray_actors_resources[actor]
    pending = handle.sleep.remote()
    task = TrackedActorTask(actor, on_error=lambda actor, error: reports.append(error))
    manager._actor_task_failed(task, ERRORS[name])
    _, first, second = reports
    assert isinstance(first, RayActorError)
    assert first is second
    if name != "unavailable":
        assert str(first) == in_words(ERRORS[name])
    assert not manager.live_actors
    with pytest.raises(RayActorError):
        ray.get(pending, timeout=30)


def test_a_killed_process_is_a_loss_and_an_exception_is_none(cluster):
    import ray

    @ray.remote(num_cpus=0)
    class Other:
        def pid(self):
            return os.getpid()

        def fail(self):
            raise OSError("by itself")

    other = Other.remote()
    with pytest.raises(OSError, match="by itself") as caught:
        ray.get(other.fail.remote())
    assert not is_lost(caught.value)
    os.kill(ray.get(other.pid.remote()), signal.SIGKILL)
    with pytest.raises(RayActorError) as missed:
        ray.get(other.pid.remote())
    assert is_lost(missed.value)
    assert not is_lost(ValueError("its own"))
