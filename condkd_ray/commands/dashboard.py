"""Both windows on a running or finished experiment: the Optuna dashboard and TensorBoard, on this machine alone."""

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

from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import read_manifest
from condkd_ray.report.tensorboard.writer import FOLDER
from condkd_ray.runs.recorder import ARTIFACTS
from condkd_ray.study.storage import JOURNAL, exists, open_storage, place_of

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 60.0
"""After which a server that does not answer is given up."""
LAST_WORDS = 12
"""Lines that are shown of a server that has failed."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Start the Optuna dashboard, where there is a study, and TensorBoard on loopback, until Ctrl-C.

    Neither asks who you are, and the Optuna dashboard can delete trials: both can be reached from this machine alone.
    Of what is added to a running search TensorBoard shows all but new embeddings, which it reads when it starts.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of a search or an experiment, running or finished."""
    study_storage: str | None = None
    """Where the search was given a `--study-storage`, the same."""
    optuna_port: int = 0
    """0: any that is free."""
    tensorboard_port: int = 0


def dashboard(command: Dashboard) -> int:
    """`condkd dashboard`."""
    read_manifest(command.out)
    if _has_study(command):
        there = exists(command.study_storage, command.out)
        require(there, "--study-storage", command.study_storage, "where the search has kept its study")
        # What a killed driver has left in a journal, its server would wait for without end, or not read.
        open_storage(command.study_storage, command.out)
    # Whoever starts us in the background may have had SIGINT ignored; and neither signal may leave the servers behind.
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
            log.info(f"{server.last_words()}\nfailed: {server.name} has ended by itself")
    return 1


@dataclass(frozen=True)
class Server:
    """One of the two, and the file of what it says: a line a request, which nobody wants to read."""

    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        """The end of what it has said."""
        self.said.seek(0)
        return "\n".join(self.said.read().decode(errors="replace").splitlines()[-LAST_WORDS:])


@contextmanager
def servers(command: Dashboard) -> Iterator[list[Server]]:
    """Both, once each answers and its address has been printed; they end with the block."""
    running: list[Server] = []
    commands = list(_commands(command))
    for name, wanted, _ in commands:
        _free(name, wanted)  # what cannot be had is refused before either starts
    try:
        for name, wanted, arguments in commands:
            port = _free(name, wanted)
            running.append(_started(name, port, arguments))
            while not _comes_up(running[-1], port):
                # Between our look at the port and the server's, another program may have taken it.
                if wanted or running[-1].process.poll() is None or _is_free(port):
                    log.info(running[-1].last_words())
                    require(False, f"{name} at port {port}", "no answer", "a port that is free, and what it is to show")
                running.pop().said.close()
                port = _free(name, wanted)
                running.append(_started(name, port, arguments))
            print(f"{name:11}  http://{HOST}:{port}/", flush=True)
        yield running
    finally:
        for server in running:
            server.process.terminate()
        for server in running:
            server.process.wait()
            server.said.close()


def _started(name: str, port: int, arguments: list[str]) -> Server:
    said = tempfile.TemporaryFile()  # noqa: SIM115
    place = ["--host", HOST, "--port", str(port)]
    process = subprocess.Popen([sys.executable, *arguments, *place], stdout=said, stderr=said, env=_direct())
    return Server(name, process, said)


def _comes_up(server: Server, port: int) -> bool:
    """Whether it answers in time. Whoever answers in the place of one that has ended is another program."""
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        if _answers(port) and server.process.poll() is None:
            return True
        time.sleep(0.1)
    return False


def _commands(command: Dashboard) -> Iterator[tuple[str, int, list[str]]]:
    """Name, port (0: any that is free), and arguments of Python of each."""
    artifacts = str(command.out / ARTIFACTS)
    if _has_study(command):
        storage = place_of(command.study_storage, command.out)
        # Optuna's own lock of a journal leads to the path that it was given, and must not dangle.
        storage = storage if "://" in storage else str(Path(storage).absolute())
        main = "from optuna_dashboard._cli import main; main()"
        yield "Optuna", command.optuna_port, ["-c", main, storage, "--artifact-dir", artifacts, "--quiet"]
    shown = ["--logdir", str(command.out / FOLDER), "--reload_interval", "5"]
    yield "TensorBoard", command.tensorboard_port, ["-m", "tensorboard.main", *shown]


def _has_study(command: Dashboard) -> bool:
    return command.study_storage is not None or (command.out / JOURNAL).is_file()


def _free(name: str, wanted: int) -> int:
    """A port that nobody listens at: the one that is wanted, unless it is 0. Raises `InputError`."""
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


def _direct() -> dict[str, str]:
    """The environment of a server. TensorBoard asks a process of its own by gRPC, and no proxy can reach that.

    What other hosts are asked by stays as it is: gRPC alone reads `no_grpc_proxy`, and before `no_proxy`.
    """
    spared = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if name in os.environ), "")
    return os.environ | {"no_grpc_proxy": ",".join(filter(None, (spared, HOST, "localhost")))}


def _answers(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, HTTPException), direct.open(f"http://{HOST}:{port}/", timeout=5):
        return True
    return False
