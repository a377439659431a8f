"""Connection to a given cluster, or a private local one that only this machine can reach. Nothing is discovered."""

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
"""Accepted addresses, for messages."""
PROBE_SECONDS = 2.0
"""Time limit of a test connection, in seconds."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray passes a job submitted by `ray job submit` its configuration, as JSON."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable of Ray, named after systems on which Ray uses loopback alone by default; "0": Ray does so on any system."""
STORE_BYTES = 2 * 2**30
"""Largest object store of a private cluster, in bytes of shared memory; further objects go to disk."""
_TOKEN = secrets.token_hex(32)
"""Token of this process's private clusters: workers of another process's cluster that has just ended may still run."""
PORT_WAIT = "RAY_gcs_server_port_wait_time_s"
"""Variable of Ray: seconds in which its first process has to report its port."""
FAILURE_THRESHOLD = "RAY_health_check_failure_threshold"
"""Variable of Ray: number of successive health checks, one every three seconds, after which a silent node is lost."""
LONGEST_TEMP = 36
"""Largest length of the temporary folder's path in characters: Ray appends 68, and a socket's path may have 107."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TQDM_MAGIC": "0",
    # Ray announces a change that has no effect here: a trial without GPUs computes on the CPU anyway.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ray logs a paragraph for each lost process or node and each repeated call; trials are logged by this package.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|has been marked dead|infinite retries remaining",
    # Tune's own snapshots are never read back (records are the source of truth), so it need not write them.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""Environment variables of every connection."""


def checked(given: str | None) -> str | None:
    """Return the address to connect to, which is `given` or the value of `RAY_ADDRESS`; None for a private cluster.

    Raises `InputError` if its form is not accepted, or no Ray answers there.
    """
    address = given or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return None
    # Through the Ray client, the driver would run on the other machine and write all results there.
    require("://" not in address, "Ray address", address, f"{ADDRESS}; not the Ray client")
    require(address != "auto", "Ray address", address, f"{ADDRESS}; nothing is discovered")
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdigit() and 0 < int(port) < 65536, "Ray address", address, ADDRESS)
    try:
        answers = _accepts_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(
            f"Ray address is {address!r}, but nothing answers there ({error}); accepted: {ADDRESS}"
        ) from None
    require(answers, "Ray address", address, f"{ADDRESS}; the server there is not Ray")
    return address


def _accepts_grpc(host: str, port: int) -> bool:
    """Return whether a server there answers with HTTP/2 settings, as gRPC does. Raises `OSError` if none is there.

    Without this check Ray would retry for minutes and then end the process.
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
    """Return whether `address` is a head on this machine that is reachable only at 127.0.0.1.

    Ray would look for it at the machine's other address.
    """
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
    """Raise `InputError` if the cluster runs another version of Ray or Python than this process.

    Ray refuses that too, but late: the driver has connected by then, and a worker only logs it. By Ray's rule, Pythons
    of different patch releases do not match unless `RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL` is `minor`.
    """
    import ray
    from ray._common.usage.usage_lib import get_cluster_metadata

    core: Any = importlib.import_module("ray._raylet")
    there = get_cluster_metadata(core.GcsClient(address=address))
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    theirs, ours = (there["ray_version"], there["python_version"]), (ray.__version__, platform.python_version())
    if theirs[0] != ours[0] or theirs[1].split(".")[:parts] != ours[1].split(".")[:parts]:
        found, here = ("Ray {} on Python {}".format(*versions) for versions in (theirs, ours))
        raise InputError(f"Ray address is {address!r}, a cluster of {found}; accepted: {here}, as in this program")


@contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Install a signal handler for the block, and then restore the earlier one. No effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def as_ctrl_c(number: int, frame: Any) -> None:
    """Handle SIGTERM by ending the process as Ctrl-C would."""
    # Shells start background processes with Ctrl-C ignored; SIGTERM must end such a process nevertheless.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupts_kept() -> Iterator[list[int]]:
    """Delay Ctrl-C to the end of the block; a second one takes effect at once. Ray loses it while it starts.

    Yields the list of received signals. If there is one, `KeyboardInterrupt` is raised after the block, in place of any
    other exception.
    """
    received: list[int] = []

    def keep(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        with handling(signal.SIGINT, keep):
            yield received
    finally:
        if received:
            raise KeyboardInterrupt


@contextmanager
def connect(
    address: str | None = None, *, cpus: int | None = None, gpus: int | None = None, view: View = SILENT
) -> Iterator[None]:
    """Connect for the length of a `with` block, in which SIGTERM acts as Ctrl-C.

    The cluster is the one at `address` (or `RAY_ADDRESS`), "host:port". Without either it is a new one on this
    machine, which ends with the block: all its sockets are on loopback, every client needs a random token, no usage
    data is sent, and nothing is written to the home folder. A process that is already connected stays connected.
    Workers of a cluster that is not private receive this package from here, see `runtime_env`.

    Args:
        address: "host:port" of a running cluster's head, or "local" for a private one, whatever `RAY_ADDRESS` is.
        cpus: CPUs of a private cluster; by default all that this process may use.
        gpus: GPUs of a private cluster; by default all that Ray finds.
        view: shows that Ray is starting.

    Raises:
        InputError: Nothing answers at `address`, its form is not accepted, or Ray or Python there has another version.
            Raised within seconds.
        ClusterError: Ray has failed to start twice; each attempt may take a minute or two.
    """
    found = checked(address)
    environment = QUIET | ({} if found else _one_nodes_environment())
    # Closing the terminal must end neither the run nor Ray's processes, which inherit the handler.
    with _environment(environment), handling(signal.SIGHUP, signal.SIG_IGN), _process_kept():
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            with view.bar("starting Ray" if found is None else "connecting to Ray"), interrupts_kept() as received:
                _init(found, cpus, gpus, received)
            # On SIGTERM Ray's core would end the process at once, with a stack dump.
            with handling(signal.SIGTERM, as_ctrl_c):
                yield
        finally:
            # A second Ctrl-C must not leave half a cluster behind; this takes a second or two.
            with handling(signal.SIGINT, signal.SIG_IGN):
                _kill_helpers()
                ray.shutdown()


LEFT_BY_RAY = ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")
"""Environment variables that Ray sets when it is imported or connects."""


@contextmanager
def _process_kept() -> Iterator[None]:
    """Restore, after the block, the parts of this process's state that Ray and Tune change.

    When they are imported, connect or run, they change the handlers of SIGTERM and SIGUSR1, the hook for uncaught
    exceptions, Python's fault handler, the levels of two of their loggers, and two environment variables.
    """
    # Tune logs each failed trial with its trace and, after Ctrl-C, the missing trials; this package reports both. In a
    # notebook Ray logs that widgets are not installed.
    levels = {name: logging.getLogger(name).level for name in ("ray.tune", "ray.widgets")}
    hook, dumps, variables = sys.excepthook, faulthandler.is_enabled(), {k: os.environ.get(k) for k in LEFT_BY_RAY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            # None: a handler that is not Python's, which Python cannot set again.
            if (handler := signal.getsignal(number)) is not None:
                handlers.enter_context(handling(number, handler))
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            sys.excepthook = hook
            if not dumps:
                faulthandler.disable()
            set_variables(variables)


def _kill_helpers() -> None:
    """Kill the processes that Ray has started for this driver, except raylet and GCS; none of them holds data.

    Ray stops them one by one and waits up to two seconds for each. On a busy machine, if Python takes that long to
    react, the shutdown took ten seconds after a second Ctrl-C. Measured with ten busy processes on two cores: 2.1 and
    2.6 s for Ray's own shutdown, 0.8 and 1.0 s with these processes killed first.
    """
    from ray._private import ray_constants, worker

    node: Any = worker._global_node
    if node is None:
        return
    # At debug level the log monitor is left alive, because it prints the workers' last lines.
    kinds = {ray_constants.PROCESS_TYPE_MONITOR, ray_constants.PROCESS_TYPE_DASHBOARD}
    kinds |= set() if log.isEnabledFor(logging.DEBUG) else {ray_constants.PROCESS_TYPE_LOG_MONITOR}
    for kind in kinds & node.all_processes.keys():
        for info in node.all_processes[kind]:
            info.process.kill()


def runtime_env() -> dict[str, Any] | None:
    """Return the runtime environment for connecting to a cluster: this package without caches.

    None in a job that was submitted with its own code, which its workers already have.
    """
    if _job_env().keys() & {"working_dir", "py_modules"}:
        return None
    return {"py_modules": [str(Path(condkd_ray.__file__).parent)], "excludes": ["**/__pycache__/"]}


def in_job_folder(path: Path) -> bool:
    """Return whether `path` is in the copy of a working directory that Ray makes for a job and deletes after it."""
    return "working_dir" in _job_env() and path.resolve().is_relative_to(Path.cwd())


def _job_env() -> dict[str, Any]:
    return json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}


@contextmanager
def private() -> Iterator[None]:
    """Set the environment of a private cluster; nodes started in the block reach each other on this machine only."""
    with _environment(QUIET | _private_environment()):
        read_environment(several_nodes=True)
        yield


def _private_environment() -> dict[str, str]:
    values = {
        LOOPBACK: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        # On a busy machine Ray's first process takes long to report its port.
        PORT_WAIT: os.environ.get(PORT_WAIT) or "120",
        # Ray runs each trial of a process in a separate thread, and each thread may get a further arena of the
        # allocator. Arenas keep memory that trials have freed: after ten trials a process held twice the memory in use.
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX") or "1",
    }
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return values | ({"RAY_TMPDIR": "/tmp"} if len(temp) > LONGEST_TEMP else {})


def _one_nodes_environment() -> dict[str, str]:
    """Return the environment of a private cluster of one node.

    The node may miss many health checks, because it can be slow but cannot be lost without the driver. On several nodes
    such a high threshold would delay the reaction to a lost node.
    """
    return _private_environment() | {FAILURE_THRESHOLD: os.environ.get(FAILURE_THRESHOLD) or "20"}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process and its children for the block; afterwards restore their earlier values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        set_variables(before)


def _init(address: str | None, cpus: int | None, gpus: int | None, received: Sequence[int]) -> None:
    """Connect to the cluster at `address`, or start a private one if it is None. Raises as `connect` does.

    `received`: the signals received by `interrupts_kept` so far.
    """
    import ray
    from ray.exceptions import RayError

    debug = log.isEnabledFor(logging.DEBUG)
    common: Any = {"namespace": "condkd", "logging_level": "INFO" if debug else "ERROR", "log_to_driver": debug}
    read_environment(several_nodes=True)
    read_environment(several_nodes=address is not None and not on_loopback_alone(address))
    if address is not None:
        try:
            check_versions(address)
            ray.init(address=address, runtime_env=runtime_env(), **common)
        except (ConnectionError, TimeoutError, RuntimeError, RayError) as error:
            reason = f"but no Ray answers there ({first_line(error)})"
            raise InputError(f"Ray address is {address!r}, {reason}; accepted: {ADDRESS}") from None
    else:
        require(cpus is None or cpus >= 1, "CPUs of the private cluster", cpus, "1 or more")
        # By default Ray counts the CPUs of the whole machine, and 0 CPUs in a container with half a CPU.
        sizes = {"num_cpus": cpus or usable_cpus(), "num_gpus": gpus, **_memory()}
        _start_ray(lambda: ray.init(address="local", include_dashboard=False, **sizes, **common), received)


def _start_ray(start: Callable[[], object], received: Sequence[int]) -> None:
    """Start Ray; if that fails, as it may on a busy machine, try once more.

    Raises `ClusterError` after the second failure, and `KeyboardInterrupt` instead of a second attempt if `received`
    shows that Ctrl-C was pressed. Ray fails in a dozen ways, mostly by a bare `Exception`, and leaves the processes
    that it has started by then. These are killed here.
    """
    import ray

    for again in (True, False):
        before = set(psutil.Process().children(recursive=True))
        try:
            start()
            return
        except Exception as error:
            ray.shutdown()
            _kill_rays(set(psutil.Process().children(recursive=True)) - before)
            if received:
                raise KeyboardInterrupt from error
            reason = first_line(error).rstrip(".")
            if not again:
                raise ClusterError(f"Ray failed to start on this machine, tried twice ({reason})") from error
            log.info(f"Ray failed to start ({reason}); trying once more")


def _kill_rays(processes: Iterable[psutil.Process]) -> None:
    """Kill Ray's processes among these; other threads may have started the others."""
    place, ended = str(Path(importlib.import_module("ray").__file__ or "").parent), []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if place in " ".join(process.cmdline()):
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, timeout=10)


def read_environment(*, several_nodes: bool) -> None:
    """Make Ray and its core read the environment again, as Ray may have been imported before the variables were set."""
    from ray._private import ray_constants, ray_logging

    for deduplicator in (ray_logging.stdout_deduplicator, ray_logging.stderr_deduplicator):
        deduplicator.skip_re = re.compile(QUIET["RAY_DEDUP_LOGS_SKIP_REGEX"])
    core: Any = importlib.import_module("ray._raylet")
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = several_nodes


def _memory() -> dict[str, int]:
    """Return the sizes of a private cluster's object store and of the memory that tasks can request, in bytes.

    No task here requests memory. By default Ray offers the free memory, and fails to start if that is little or
    negative.
    """
    from ray._common.utils import get_system_memory

    memory = get_system_memory()  # of the container, if there is one
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    free = shared.f_bavail * shared.f_frsize * 9 // 10 if shared else STORE_BYTES
    # Ray refuses less than 75 MiB.
    return {"object_store_memory": max(min(STORE_BYTES, memory // 4, free), 80 * 2**20), "_memory": memory}
