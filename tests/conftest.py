"""Settings and fixtures of all tests. This file puts its folder on the import path, so that tests can `import toy`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests must use neither the user's AWS keys nor the keys that a cloud machine provides.
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
from places import EXPERIMENTS, INSTALLED
from programs import logger_restored

from condkd_ray.core.environment import usable_cpus

# Scripts import `benchmark` and `chaos` from their own folder; tests and their workers need that folder on the path.
sys.path.extend(map(str, (EXPERIMENTS, INSTALLED)))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.environ.get("PYTHONPATH"), str(EXPERIMENTS), str(INSTALLED)])
)
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Processes of xdist and of background jobs ignore SIGINT. Programs that a test starts would inherit this, and could
    # not be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# With `derandomize` the examples are the same in every run of the same files; Hypothesis takes some from constants of
# imported modules. Without a deadline, a busy machine does not cause failures.
settings.register_profile("condkd_ray", deadline=None, derandomize=True, database=None)
settings.load_profile("condkd_ray")


MOST_PROCESSES = 8
PROCESS_BYTES = 3 * 2**30
"""Memory for one test process with its own Ray cluster and trials (our choice)."""


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("xdist"):
        # With `-p no:xdist`, accept the options in `pyproject.toml` and run all tests in this process.
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="ignored: pytest-xdist is not loaded")
        parser.addoption("--no-loadscope-reorder", action="store_true", help="ignored: pytest-xdist is not loaded")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with current numbers")
    parser.addoption("--fuzz", type=int, default=85, help="number of files of each kind that are tested")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of test processes: one per CPU, limited by memory; `-n 0` runs all tests in this process."""
    if config.option.markexpr == "gpu":
        return 0  # tests that measure a GPU must not share it
    return max(1, min(usable_cpus(), MOST_PROCESSES, psutil.virtual_memory().total // PROCESS_BYTES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files with long tests and with Ray tests to the front.

    They take longest, and the other processes would wait for one that starts late.
    """

    def is_long(item: pytest.Item) -> bool:
        return bool({"long", "ray"} & {*item.keywords}) or "cluster" in getattr(item, "fixturenames", ())

    first = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(autouse=True)
def deterministic(request):
    """Seed the global random generator, and make nondeterministic operations on the CPU raise an error.

    Uninitialised memory is then filled with NaN.
    """
    torch.manual_seed(0)
    # `use_deterministic_algorithms` is not used because it imports the compiler.
    torch.set_deterministic_debug_mode("default" if "gpu" in request.keywords else "error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Restore the package's logger after each test, because commands configure it."""
    with logger_restored():
        yield


@pytest.fixture
def logged(silent) -> list[str]:
    """The list of messages that the package logs during the test."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger = logging.getLogger("condkd_ray")
    logger.setLevel(logging.INFO)
    logger.addHandler(Collector())
    return messages


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The query part of bucket URIs on a local S3 server, which is empty at first."""
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
    """The private Ray cluster of all tests, with two CPUs and two GPUs that exist only as Ray resources."""
    from condkd_ray.cluster.connection import connect

    with connect("local", cpus=2, gpus=2):
        yield
