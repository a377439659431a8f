"""Both windows on a running or finished experiment: the Optuna dashboard and TensorBoard, on this machine alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import tyro

from condkd_ray.method import require
from condkd_ray.report.records import read_manifest
from condkd_ray.report.tensorboard import FOLDER
from condkd_ray.scribe import ARTIFACTS
from condkd_ray.shell import say
from condkd_ray.study.storages import JOURNAL

HOST = "127.0.0.1"
START_SECONDS = 60.0
"""After which a server that does not answer is given up."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Start the Optuna dashboard, where there is a study, and TensorBoard on loopback, until Ctrl-C.

    Neither asks who you are, and the Optuna dashboard can delete trials: both can be reached from this machine alone.
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
    # Whoever starts us in the background may have had SIGINT ignored; and neither signal may leave the servers behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with servers(command) as processes:
        say("Ctrl-C ends both")
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
    say("failed: a server has ended by itself")
    return 1


@contextmanager
def servers(command: Dashboard) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, once each answers and its address has been printed; they end with the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments, port in _commands(command):
            process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
            processes.append(process)
            _wait(name, process, port)
            print(f"{name}  http://{HOST}:{port}/", flush=True)
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _commands(command: Dashboard) -> Iterator[tuple[str, list[str], int]]:
    """Name, arguments of Python, and port of each."""
    out, journal = command.out, command.out / JOURNAL
    if command.study_storage is not None or journal.is_file():
        port = command.optuna_port or _free_port()
        storage = command.study_storage or str(journal)
        place = ["--host", HOST, "--port", str(port), "--artifact-dir", str(out / ARTIFACTS), "--quiet"]
        yield "Optuna     ", ["-c", "from optuna_dashboard._cli import main; main()", storage, *place], port
    port = command.tensorboard_port or _free_port()
    place = ["--host", HOST, "--port", str(port), "--reload_interval", "5"]
    yield "TensorBoard", ["-m", "tensorboard.main", "--logdir", str(out / FOLDER), *place], port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    begin = time.monotonic()
    while not _answers(port):
        alive = process.poll() is None and time.monotonic() - begin < START_SECONDS
        require(alive, f"{name.strip()} at port {port}", "no answer", "a port that is free, and what it is to show")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=5):
            return True
    except (URLError, OSError):
        return False
