"""Fixtures and options of all tests. This file also puts its folder on the import path, for `import toy` and others."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may use the credentials of the person who runs it, or request some from a cloud machine.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import settings
from places import EXPERIMENTS
from programs import logger_restored

from condkd_ray.core.environment import usable_cpus

# Scripts find `benchmark` and `chaos` in their own folder; tests, and the workers they start, find them by these paths.
sys.path.append(str(EXPERIMENTS))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(EXPERIMENTS)]))
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Programs started by a test would inherit an ignored SIGINT, and tests could not interrupt them. Workers of xdist
    # and background processes of a shell ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples in every run of the same files (Hypothesis takes some from constants of imported modules), and no
# time limit on a busy machine.
settings.register_profile("condkd_ray", deadline=None, derandomize=True, database=None)
settings.load_profile("condkd_ray")


MOST_PROCESSES = 8
PROCESS_BYTES = 3 * 2**30
"""Memory for a test process with its own Ray cluster and that cluster's trials (our choice)."""


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("xdist"):
        # With `-p no:xdist` the options in `pyproject.toml` must be accepted; all tests run in this process.
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="of pytest-xdist, which is not loaded")
        parser.addoption("--no-loadscope-reorder", action="store_true", help="of pytest-xdist, which is not loaded")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with today's numbers")
    parser.addoption("--fuzz", type=int, default=85, help="number of files of each kind to try")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes of a plain `pytest`: CPUs, limited by memory; `-n 0` uses this process only."""
    if config.option.markexpr == "gpu":
        return 0  # tests that measure a GPU must not share it
    return max(1, min(usable_cpus(), MOST_PROCESSES, psutil.virtual_memory().total // PROCESS_BYTES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with tests on Ray first.

    They take longest: a process that starts one of them last would run alone at the end.
    """
    on_ray = {item.path for item in items if "ray" in item.keywords or "cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in on_ray)


@pytest.fixture(autouse=True)
def deterministic(request):
    """Seed the global generator. On the CPU, operations without a deterministic form raise an error, and uninitialised
    memory is NaN.
    """
    torch.manual_seed(0)
    # Not `use_deterministic_algorithms`, which imports the compiler.
    torch.set_deterministic_debug_mode("default" if "gpu" in request.keywords else "error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Restore the package's logger after each test, because commands make it print."""
    with logger_restored():
        yield


@pytest.fixture
def heard(silent) -> list[str]:
    """Messages that the package logs while the test runs."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger = logging.getLogger("condkd_ray")
    logger.setLevel(logging.INFO)
    logger.addHandler(Listener())
    return messages


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Query string for URIs of buckets on the tests' own S3 server, which is empty at first."""
    missing = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
    if missing:
        pytest.skip(f"the S3 server of the tests is not installed: {', '.join(missing)} (pip install '.[test]')")
    command = [sys.executable, str(Path(__file__).parent / "s3_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        port = server.stdout.readline().strip()
        assert port, "the S3 server has not started"
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        server.stdin.close()


_buckets = count()


@pytest.fixture
def bucket(s3) -> str:
    """URI of a folder in a new bucket."""
    from pyarrow.fs import FileSystem

    name = f"bucket{next(_buckets)}"
    store, _ = FileSystem.from_uri(f"s3://{name}/?{s3}&allow_bucket_creation=true")
    store.create_dir(name)
    return f"s3://{name}/some/folder?{s3}"


@pytest.fixture(scope="session")
def cluster():
    """The private Ray cluster that all tests share: two CPUs and two simulated GPUs."""
    from condkd_ray.cluster.connection import connect

    with connect("local", cpus=2, gpus=2):
        yield
