"""`condkd dashboard`: serve the Optuna dashboard and TensorBoard for a running or finished experiment, on loopback."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import read_manifest
from condkd_ray.report.tensorboard.writer import FOLDER
from condkd_ray.runs.recorder import ARTIFACTS
from condkd_ray.study.storage import JOURNAL, exists, open_storage, place_of

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 60.0
"""A server that does not respond within this time, in seconds, has failed."""
LAST_LINES = 12
"""Number of lines of a failed server's output that are logged."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Start the Optuna dashboard, if there is a study, and TensorBoard on loopback, until Ctrl-C.

    Neither has a login, and the Optuna dashboard can delete trials, so both are reachable from this machine only.
    TensorBoard updates itself during a running search, except for embeddings, which it reads only when it starts.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of a search or an experiment, running or finished."""
    study_storage: str | None = None
    """The `--study-storage` of the search, if it had one."""
    optuna_port: int = 0
    """Port of the Optuna dashboard; 0: any free port."""
    tensorboard_port: int = 0
    """Port of TensorBoard; 0: any free port."""


def dashboard(command: Dashboard) -> int:
    """Run `condkd dashboard` until it is interrupted; return 0, or 1 if a server has ended by itself.

    Raises `InputError` if `out` is not a folder of results, or if a study, a storage or a port cannot be used.
    """
    read_manifest(command.out)
    if _has_study(command):
        there = exists(command.study_storage, command.out)
        require(there, "--study-storage", command.study_storage, "the storage in which the search keeps its study")
        # This repairs a journal of a killed driver; the server would wait for its lock forever, or not read it.
        open_storage(command.study_storage, command.out)
    # SIGINT may be ignored, as in a background job of a shell. Both signals must end the servers too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with servers(command) as running:
        log.info("Ctrl-C ends both")
        try:
            while not (ended := [server for server in running if server.process.poll() is not None]):
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
        for server in ended:
            log.info(f"{server.output_end()}\nfailed: {server.name} has ended by itself")
    return 1


@dataclass(frozen=True)
class Server:
    """One of the two servers, and the file that receives its output: a line per request, shown only on failure."""

    name: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def output_end(self) -> str:
        """Return the last lines of the output."""
        self.output.seek(0)
        return "\n".join(self.output.read().decode(errors="replace").splitlines()[-LAST_LINES:])


@contextmanager
def servers(command: Dashboard) -> Iterator[list[Server]]:
    """Start the servers, print the address of each as soon as it responds, and end them after the block.

    Raises `InputError` if a port is in use or invalid, or if a server does not respond.
    """
    running: list[Server] = []
    commands = list(_commands(command))
    for name, wanted, _ in commands:
        free_port(name, wanted)  # raises for a port in use before either server starts
    try:
        for name, wanted, arguments in commands:
            port = free_port(name, wanted)
            running.append(_started(name, port, arguments))
            while not _responds_in_time(running[-1], port):
                # Another program may have taken the port between the check and the server's start.
                if wanted or running[-1].process.poll() is None or _is_free(port):
                    log.info(running[-1].output_end())
                    accepted = "a free port, and files that the server can show"
                    require(False, f"{name} at port {port}", "no answer", accepted)
                running.pop().output.close()
                port = free_port(name, wanted)
                running.append(_started(name, port, arguments))
            show(f"{name:11}  http://{HOST}:{port}/")
        yield running
    finally:
        for server in running:
            server.process.terminate()
        for server in running:
            server.process.wait()
            server.output.close()


def _started(name: str, port: int, arguments: list[str]) -> Server:
    output = tempfile.TemporaryFile()  # noqa: SIM115
    place = ["--host", HOST, "--port", str(port)]
    process = subprocess.Popen([sys.executable, *arguments, *place], stdout=output, stderr=output, env=_environment())
    return Server(name, process, output)


def _responds_in_time(server: Server, port: int) -> bool:
    """Return True if the server answers in time. An answer after its process has ended is another program's."""
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        if answers(port) and server.process.poll() is None:
            return True
        time.sleep(0.1)
    return False


def _commands(command: Dashboard) -> Iterator[tuple[str, int, list[str]]]:
    """Yield name, port (0: any free one) and Python arguments of each server."""
    artifacts = str(command.out / ARTIFACTS)
    if _has_study(command):
        storage = place_of(command.study_storage, command.out)
        # Optuna locks a journal by a symbolic link to the path that it was given; a relative one would dangle.
        storage = storage if "://" in storage else str(Path(storage).absolute())
        main = "from optuna_dashboard._cli import main; main()"
        yield "Optuna", command.optuna_port, ["-c", main, storage, "--artifact-dir", artifacts, "--quiet"]
    shown = ["--logdir", str(command.out / FOLDER), "--reload_interval", "5"]
    yield "TensorBoard", command.tensorboard_port, ["-m", "tensorboard.main", *shown]


def _has_study(command: Dashboard) -> bool:
    return command.study_storage is not None or (command.out / JOURNAL).is_file()


def free_port(name: str, wanted: int) -> int:
    """Return a free port: `wanted`, or any if that is 0. Raises `InputError` if `wanted` is in use or invalid."""
    accepted = "one that is free, or 0 for any"
    require(0 <= wanted < 2**16, f"port of {name}", wanted, accepted)
    try:
        with socket.create_server((HOST, wanted)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise InputError(f"port of {name} is {wanted}; accepted: {accepted} ({error.strerror})") from None


def _is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Return the environment of a server, in which gRPC connections to this machine bypass any proxy.

    TensorBoard sends gRPC requests to a process that it has started, which no proxy can reach. Only gRPC reads
    `no_grpc_proxy`, in place of `no_proxy` if both are set, so all other connections keep their proxies.
    """
    exempt = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if name in os.environ), "")
    return os.environ | {"no_grpc_proxy": ",".join(filter(None, (exempt, HOST, "localhost")))}


def answers(port: int) -> bool:
    """Return whether an HTTP server answers at this port of this machine."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, HTTPException), direct.open(f"http://{HOST}:{port}/", timeout=5):
        return True
    return False
