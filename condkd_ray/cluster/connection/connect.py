"""The cluster that was named, or a private local one. Nothing is discovered; nobody but this machine can reach it."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

from condkd_ray.cluster.connection.address import ADDRESS, check_versions, checked, on_loopback_alone
from condkd_ray.cluster.connection.shipping import runtime_env
from condkd_ray.cluster.connection.signals import as_ctrl_c, handling, interrupts_kept
from condkd_ray.core.method import InputError, require
from condkd_ray.core.view import SILENT, View

log = logging.getLogger(__name__)

NAMESPACE = "condkd"
NO_MORE: Mapping[str, float] = MappingProxyType({})
"""No custom resources."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Named after systems where Ray, unless told otherwise, stays on loopback; with "0" it does so anywhere."""
STORE_BYTES = 2 * 2**30
"""Most shared memory a private cluster takes for its object store; beyond it objects go to disk."""
LONGEST_TEMP = 36
"""Characters: Ray puts 68 more behind the folder of temporary files, and a socket's path may have 107."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TQDM_MAGIC": "0",
    # Ray announces a change that does not concern us: without a GPU of its own a trial computes on the CPU anyway.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A paragraph for each process and node lost; what becomes of trials we tell ourselves.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|has been marked dead",
    # Tune's own snapshots are never read back (records are the truth), so it shall not spend time on them.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""Environment of every connection."""


@contextmanager
def connect(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None, view: View = SILENT
) -> Iterator[None]:
    """A connection for the length of a `with` block, in which SIGTERM acts as Ctrl-C.

    The cluster is the one at `address` (or `RAY_ADDRESS`), "host:port". Without either it is a new one on this
    machine: all sockets on loopback, a random token asked of every client, nothing reported to anyone, nothing
    written to the home folder; it ends with the block. A process that is connected already stays so. Workers of a
    cluster that is not private get this package as it lies here, see `condkd_ray.cluster.connection.shipping`.

    Args:
        address: "host:port" of a running cluster's head, or "local" for a private one whatever `RAY_ADDRESS` says.
        cpus: of a private cluster; all of the machine by default.
        gpus: likewise.
        view: What shows that it is being made.

    Raises:
        InputError: Nothing answers at `address`, it is of a form that is not accepted, or the Ray or Python there is
            another than ours. Within seconds.
    """
    found = checked(address)
    environment = QUIET | ({} if found else _private_environment())
    # A terminal that is closed shall not end what runs, nor Ray's processes, which inherit this.
    with _environment(environment), handling(signal.SIGHUP, signal.SIG_IGN):
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            with view.bar("starting Ray" if found is None else "connecting to Ray"), interrupts_kept():
                _init(found, cpus, gpus)
            # Ray's core would end the process on SIGTERM at once, with a stack dump.
            with handling(signal.SIGTERM, as_ctrl_c):
                yield
        finally:
            # A second Ctrl-C shall not leave half a cluster behind; this takes a second or two.
            with handling(signal.SIGINT, signal.SIG_IGN):
                ray.shutdown()


@contextmanager
def private() -> Iterator[None]:
    """The environment of a private cluster; nodes started in it know one another, and this machine alone them."""
    with _environment(QUIET | _private_environment()):
        _read_environment(several_nodes=True)
        yield


def check_resources(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] = NO_MORE) -> None:
    """Raise `InputError` where no node of the connected cluster could ever run such a trial.

    `more`: amounts of custom resources by name.
    """
    import ray

    require(cpus_per_trial > 0, "CPUs per trial", cpus_per_trial, "more than 0")
    whole = 0 <= gpus_per_trial <= 1 or gpus_per_trial == int(gpus_per_trial) > 0
    require(whole, "GPUs per trial", gpus_per_trial, "0 to 1, or a whole number")
    asked = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **more}
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    best = sorted((_offer(offer) for offer in offers), key=_largest_first)
    there = "; ".join(dict.fromkeys(_told(offer) for offer in best))
    fits = any(_fits(offer, asked) for offer in offers)
    require(fits, "resources per trial", _told(asked), f"at most what one machine has, of {there or 'none'}")


def slots(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] = NO_MORE) -> int:
    """How many such trials run at once on the connected cluster."""
    import ray

    asked = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **more}
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(int(min(offer.get(name, 0) / amount for name, amount in asked.items() if amount)) for offer in nodes)


def _fits(offer: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(offer.get(name, 0) >= amount for name, amount in asked.items())


def _offer(resources: Mapping[str, float]) -> dict[str, float]:
    """What of a node's resources a user counts: not memory, and not the names by which Ray itself finds it."""
    own = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "accelerator_type:"))}
    return {"CPU": 0.0, "GPU": 0.0} | {k: v for k, v in own.items() if k not in ("memory", "object_store_memory")}


def _largest_first(offer: Mapping[str, float]) -> tuple[float, float]:
    return -offer["GPU"], -offer["CPU"]


def _told(amounts: Mapping[str, float]) -> str:
    custom = [f"{amount:g} {name}" for name, amount in amounts.items() if name not in ("CPU", "GPU")]
    return ", ".join([f"{amounts['CPU']:g} CPUs", f"{amounts['GPU']:g} GPUs", *custom])


@cache
def _token() -> str:
    # One a process: workers of a cluster just ended may still be about.
    return secrets.token_hex(32)


def _private_environment() -> dict[str, str]:
    values = {
        LOOPBACK: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
        # Ray runs each trial of a process in a thread of its own, and each thread may get another of the allocator's
        # arenas. These keep what trials have freed: after ten trials a process held twice what it needs.
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1"),
    }
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return values | ({"RAY_TMPDIR": "/tmp"} if len(temp) > LONGEST_TEMP else {})


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """`values` in the environment, for this process and all it starts, and afterwards what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _init(address: str | None, cpus: int | None, gpus: int | None) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    told = log.isEnabledFor(logging.DEBUG)
    quiet: dict[str, Any] = {"logging_level": "INFO" if told else "ERROR", "log_to_driver": told}
    quiet["namespace"] = NAMESPACE
    _read_environment(several_nodes=True)
    _read_environment(several_nodes=address is not None and not on_loopback_alone(address))
    if address is not None:
        try:
            check_versions(address)
            ray.init(address=address, runtime_env=runtime_env(), **quiet)
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"Ray address is {address!r}, where no Ray answers ({reason}); accepted: {ADDRESS}"
            ) from None
    else:
        require(cpus is None or cpus >= 1, "CPUs of the private cluster", cpus, "1 or more")
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=_store_bytes(),
            include_dashboard=False,
            **quiet,
        )
    # Tune logs each failed trial with its trace, and that trials are missing after Ctrl-C; we report both ourselves.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _read_environment(*, several_nodes: bool) -> None:
    """Ray read the environment when it was imported, which may have been before we came: so again, core and all."""
    from ray._private import ray_constants

    core: Any = importlib.import_module("ray._raylet")
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = several_nodes


def _store_bytes() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    free = shared.f_bavail * shared.f_frsize * 9 // 10 if shared else STORE_BYTES
    # Ray refuses less than 75 MiB.
    return max(min(STORE_BYTES, memory // 4, free), 80 * 2**20)
