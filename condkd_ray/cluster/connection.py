"""The cluster that was named, or a private local one. Nothing is discovered; nobody but this machine can reach it."""

import faulthandler
import importlib
import json
import logging
import os
import platform
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

import condkd_ray
from condkd_ray.core.environment import set_variables, usable_cpus
from condkd_ray.core.errors import first_line
from condkd_ray.core.method import ClusterError, InputError, require
from condkd_ray.core.view import SILENT, View

log = logging.getLogger(__name__)

ADDRESS = '"host:port" of a running head node (its token in RAY_AUTH_TOKEN), or "local"'
PROBE_SECONDS = 2.0
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where a program that `ray job submit` has started finds what it was submitted with, as JSON."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Named after systems where Ray, unless told otherwise, stays on loopback; with "0" it does so anywhere."""
STORE_BYTES = 2 * 2**30
"""Most shared memory a private cluster takes for its object store; beyond it objects go to disk."""
_TOKEN = secrets.token_hex(32)
"""One a process: workers of a cluster just ended may still be about."""
PORT_WAIT = "RAY_gcs_server_port_wait_time_s"
FAILURE_THRESHOLD = "RAY_health_check_failure_threshold"
"""How many questions in a row, one every three seconds, a node may leave without answer before it is taken as lost."""
LONGEST_TEMP = 36
"""Characters: Ray puts 68 more behind the folder of temporary files, and a socket's path may have 107."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TQDM_MAGIC": "0",
    # Ray announces a change that does not concern us: without a GPU of its own a trial computes on the CPU anyway.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A paragraph for each process and node lost, and each call made again; what becomes of trials we tell ourselves.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|has been marked dead|infinite retries remaining",
    # Tune's own snapshots are never read back (records are the truth), so it shall not spend time on them.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""Environment of every connection."""


def checked(given: str | None) -> str | None:
    """The address to connect to, `given` or in `RAY_ADDRESS`; None for a private cluster.

    Raises `InputError` where it is of a form that is not accepted, or no Ray answers there.
    """
    address = given or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return None
    # Through the client the driver, and with it all results, would live on the other machine.
    require("://" not in address, "Ray address", address, f"{ADDRESS}; not the Ray client")
    require(address != "auto", "Ray address", address, f"{ADDRESS}; nothing is discovered")
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdigit() and 0 < int(port) < 65536, "Ray address", address, ADDRESS)
    try:
        answers = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(f"Ray address is {address!r}, where nothing answers ({error}); accepted: {ADDRESS}") from None
    require(answers, "Ray address", address, f"{ADDRESS}; what answers there is no Ray")
    return address


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server is there that greets as gRPC does: with HTTP/2 settings. Raises `OSError` where none is.

    Ray itself would go on trying for minutes, and then end the process.
    """
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return True
        connection.sendall(hello)
        try:
            answer = connection.recv(9)
        except TimeoutError:
            return False
    return len(answer) > 3 and answer[3] == 4


def on_loopback_alone(address: str) -> bool:
    """Whether a head on this machine can be reached at 127.0.0.1 only; Ray would look for it at its other address."""
    import ray

    host, _, port = address.rpartition(":")
    if host not in ("localhost", "127.0.0.1"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=PROBE_SECONDS).close()
    except OSError:
        return True
    return False


def check_versions(address: str) -> None:
    """Raise `InputError` where the cluster runs another Ray, or another Python, than we do.

    Ray refuses that too, but late: a driver has connected by then, and a worker only logs it. By its rule Pythons of
    different patch releases do not match, unless `RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL` is `minor`.
    """
    import ray
    from ray._common.usage.usage_lib import get_cluster_metadata

    core: Any = importlib.import_module("ray._raylet")
    there = get_cluster_metadata(core.GcsClient(address=address))
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    theirs, ours = (there["ray_version"], there["python_version"]), (ray.__version__, platform.python_version())
    if theirs[0] != ours[0] or theirs[1].split(".")[:parts] != ours[1].split(".")[:parts]:
        found, here = ("Ray {} on Python {}".format(*versions) for versions in (theirs, ours))
        raise InputError(f"Ray address is {address!r}, a cluster of {found}; accepted: one of {here}, as this program")


@contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """`handler` in charge of a signal, and afterwards whoever was before. Only the main thread can; others pass."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def as_ctrl_c(number: int, frame: Any) -> None:
    """A handler of SIGTERM: the process is ended as by Ctrl-C."""
    # Who starts us in the background, as shells do, may have had Ctrl-C ignored; SIGTERM is meant for us all the same.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupts_kept() -> Iterator[list[int]]:
    """Ctrl-C takes effect at the end of the block, and a second one at once: Ray, while it comes up, forgets it.

    What came is in the list that the block gets. `KeyboardInterrupt` is raised then whatever the block raises.
    """
    came: list[int] = []

    def keep(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        with handling(signal.SIGINT, keep):
            yield came
    finally:
        if came:
            raise KeyboardInterrupt


@contextmanager
def connect(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None, view: View = SILENT
) -> Iterator[None]:
    """A connection for the length of a `with` block, in which SIGTERM acts as Ctrl-C.

    The cluster is the one at `address` (or `RAY_ADDRESS`), "host:port". Without either it is a new one on this
    machine: all sockets on loopback, a random token asked of every client, nothing reported to anyone, nothing
    written to the home folder; it ends with the block. A process that is connected already stays so. Workers of a
    cluster that is not private get this package as it lies here, see `runtime_env`.

    Args:
        address: "host:port" of a running cluster's head, or "local" for a private one whatever `RAY_ADDRESS` says.
        cpus: of a private cluster; all that this process may use by default.
        gpus: likewise.
        view: shows that Ray is starting.

    Raises:
        InputError: Nothing answers at `address`, it is of a form that is not accepted, or the Ray or Python there is
            another than ours. Within seconds.
        ClusterError: Ray does not come up, twice; each time that may take it a minute or two.
    """
    found = checked(address)
    environment = QUIET | ({} if found else _one_nodes_environment())
    # A terminal that is closed shall not end what runs, nor Ray's processes, which inherit this.
    with _environment(environment), handling(signal.SIGHUP, signal.SIG_IGN), _process_kept():
        import ray

        # Tune logs each failed trial with its trace, and that trials are missing after Ctrl-C; we report both.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        if ray.is_initialized():
            yield
            return
        try:
            with view.bar("starting Ray" if found is None else "connecting to Ray"), interrupts_kept() as came:
                _init(found, cpus, gpus, came)
            # Ray's core would end the process on SIGTERM at once, with a stack dump.
            with handling(signal.SIGTERM, as_ctrl_c):
                yield
        finally:
            # A second Ctrl-C shall not leave half a cluster behind; this takes a second or two.
            with handling(signal.SIGINT, signal.SIG_IGN):
                _kill_helpers()
                ray.shutdown()


LEFT_BY_RAY = ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")
"""Environment variables that Ray sets when it is imported or connects."""


@contextmanager
def _process_kept() -> Iterator[None]:
    """Restore, after the block, what Ray and Tune change in a process when they are imported, connect or run.

    These are handlers of SIGTERM and SIGUSR1, the hook for uncaught exceptions, Python's fault handler, the level of
    Tune's logger, and two environment variables.
    """
    tune, hook, dumps = logging.getLogger("ray.tune"), sys.excepthook, faulthandler.is_enabled()
    level, variables = tune.level, {name: os.environ.get(name) for name in LEFT_BY_RAY}
    with ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            # None: a handler that is not Python's, which Python cannot set again.
            if (handler := signal.getsignal(number)) is not None:
                handlers.enter_context(handling(number, handler))
        try:
            yield
        finally:
            tune.setLevel(level)
            sys.excepthook = hook
            if not dumps:
                faulthandler.disable()
            set_variables(variables)


def _kill_helpers() -> None:
    """Kill what Ray has started for this driver beside raylet and GCS: it keeps nothing.

    Ray asks one after another to end, and waits up to two seconds for each: on a busy machine, where Python takes that
    long to hear it, a second Ctrl-C was seen to take ten seconds. Measured with ten busy processes on two cores: 2.1
    and 2.6 s for its whole shutdown, and 0.8 and 1.0 s with these killed first.
    """
    from ray._private import ray_constants, worker

    node: Any = worker._global_node
    if node is None:
        return
    # Where workers' words are shown, the log monitor brings the last of them.
    kinds = {ray_constants.PROCESS_TYPE_MONITOR, ray_constants.PROCESS_TYPE_DASHBOARD}
    kinds |= set() if log.isEnabledFor(logging.DEBUG) else {ray_constants.PROCESS_TYPE_LOG_MONITOR}
    for kind in kinds & node.all_processes.keys():
        for info in node.all_processes[kind]:
            info.process.kill()


def runtime_env() -> dict[str, Any] | None:
    """What to give to Ray when connecting to a cluster: the package as it lies here, without caches.

    None in a job that was submitted with code of its own: workers then have what we have.
    """
    if _job_env().keys() & {"working_dir", "py_modules"}:
        return None
    return {"py_modules": [str(Path(condkd_ray.__file__).parent)], "excludes": ["**/__pycache__/"]}


def in_job_folder(path: Path) -> bool:
    """Whether `path` lies in the copy of a working directory that Ray made for a job, and deletes after it."""
    return "working_dir" in _job_env() and path.resolve().is_relative_to(Path.cwd())


def _job_env() -> dict[str, Any]:
    return json.loads(os.environ.get(JOB, "{}")).get("runtime_env") or {}


@contextmanager
def private() -> Iterator[None]:
    """The environment of a private cluster; nodes started in it know one another, and this machine alone them."""
    with _environment(QUIET | _private_environment()):
        _read_environment(several_nodes=True)
        yield


def _private_environment() -> dict[str, str]:
    values = {
        LOOPBACK: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        # On a busy machine Ray's first process is slow to say where it listens.
        PORT_WAIT: os.environ.get(PORT_WAIT, "120"),
        # Ray runs each trial of a process in a thread of its own, and each thread may get another of the allocator's
        # arenas. These keep what trials have freed: after ten trials a process held twice what it needs.
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1"),
    }
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return values | ({"RAY_TMPDIR": "/tmp"} if len(temp) > LONGEST_TEMP else {})


def _one_nodes_environment() -> dict[str, str]:
    """Of a private cluster of one node: it may be slow to answer whether it lives, and is never lost by itself.

    Among several this would delay by as much what is done about a node that is lost.
    """
    return _private_environment() | {FAILURE_THRESHOLD: os.environ.get(FAILURE_THRESHOLD, "20")}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """`values` in the environment, for this process and all it starts, and afterwards what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        set_variables(before)


def _init(address: str | None, cpus: int | None, gpus: int | None, came: Sequence[int]) -> None:
    """Connect; `came`: whether Ctrl-C was pressed, as `interrupts_kept` tells it."""
    import ray
    from ray.exceptions import RayError

    told = log.isEnabledFor(logging.DEBUG)
    common: Any = {"namespace": "condkd", "logging_level": "INFO" if told else "ERROR", "log_to_driver": told}
    _read_environment(several_nodes=True)
    _read_environment(several_nodes=address is not None and not on_loopback_alone(address))
    if address is not None:
        try:
            check_versions(address)
            ray.init(address=address, runtime_env=runtime_env(), **common)
        except (ConnectionError, TimeoutError, RuntimeError, RayError) as error:
            silent = f"where no Ray answers ({first_line(error)})"
            raise InputError(f"Ray address is {address!r}, {silent}; accepted: {ADDRESS}") from None
    else:
        require(cpus is None or cpus >= 1, "CPUs of the private cluster", cpus, "1 or more")
        # Ray counts those of the machine, and none where a container has half of one.
        sizes = {"num_cpus": cpus or usable_cpus(), "num_gpus": gpus, **_memory()}
        _come_up(lambda: ray.init(address="local", include_dashboard=False, **sizes, **common), came)


def _come_up(start: Callable[[], object], came: Sequence[int]) -> None:
    """Start Ray, once more where it fails, as on a machine that was too busy. Raises `ClusterError` then.

    Not once more where Ctrl-C was pressed, of which there is something in `came` then.

    Ray has a dozen ways to fail in, most of them a bare `Exception`, and leaves behind what it has started by then.
    """
    import ray

    for again in (True, False):
        before = set(psutil.Process().children(recursive=True))
        try:
            start()
            return
        except Exception as error:
            ray.shutdown()
            _end_rays(set(psutil.Process().children(recursive=True)) - before)
            if came:
                raise KeyboardInterrupt from error
            told = first_line(error)
            if not again:
                raise ClusterError(f"Ray does not come up on this machine, tried twice ({told.rstrip('.')})") from error
            log.info(f"Ray has not come up ({told.rstrip('.')}): once more")


def _end_rays(processes: Iterable[psutil.Process]) -> None:
    """End those of these that are Ray's; another thread may have started others."""
    place, ended = str(Path(importlib.import_module("ray").__file__ or "").parent), []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if place in " ".join(process.cmdline()):
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, timeout=10)


def _read_environment(*, several_nodes: bool) -> None:
    """Ray read the environment when it was imported, which may have been before we came: so again, core and all."""
    from ray._private import ray_constants, ray_logging

    for words in (ray_logging.stdout_deduplicator, ray_logging.stderr_deduplicator):
        words.skip_re = re.compile(QUIET["RAY_DEDUP_LOGS_SKIP_REGEX"])
    core: Any = importlib.import_module("ray._raylet")
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = several_nodes


def _memory() -> dict[str, int]:
    """Bytes of the object store of a private cluster, and those that tasks could ask Ray for, which none of ours does.

    Left to itself Ray takes what is free for the latter, and does not come up where that is little, or less than none.
    """
    from ray._common.utils import get_system_memory

    memory = get_system_memory()  # of the container, where there is one
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    free = shared.f_bavail * shared.f_frsize * 9 // 10 if shared else STORE_BYTES
    # Ray refuses less than 75 MiB.
    return {"object_store_memory": max(min(STORE_BYTES, memory // 4, free), 80 * 2**20), "_memory": memory}
