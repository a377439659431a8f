"""Its presence puts this folder on the import path, so that every test can `import toy`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test shall ever use the keys of whoever runs it, nor ask a cloud's machine for some.
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

# Scripts find `benchmark` and `chaos` beside them; tests, and the workers that these start, find them here.
sys.path.append(str(EXPERIMENTS))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(EXPERIMENTS)]))
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Else all programs would ignore it, too, that a test starts to interrupt them: a worker of xdist ignores it, and so
    # does whatever a script has started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples in every run of the same files, as Hypothesis takes some from constants of what is imported; and no
# time limit on a busy machine.
settings.register_profile("condkd_ray", deadline=None, derandomize=True, database=None)
settings.load_profile("condkd_ray")


MOST_PROCESSES = 8
PROCESS_BYTES = 3 * 2**30
"""Memory for a process of tests with a Ray cluster of its own and the trials that this runs (our choice)."""


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("xdist"):
        # With `-p no:xdist` the options in `pyproject.toml` are accepted, and all runs in this process.
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="of pytest-xdist, which is not loaded")
        parser.addoption("--no-loadscope-reorder", action="store_true", help="of pytest-xdist, which is not loaded")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with today's numbers")
    parser.addoption("--fuzz", type=int, default=85, help="how many files of each kind are tried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Number of processes of a plain `pytest`: the CPUs, as far as there is memory; `-n 0` runs all in this process."""
    if config.option.markexpr == "gpu":
        return 0  # tests that measure a GPU have it for themselves
    return max(1, min(usable_cpus(), MOST_PROCESSES, psutil.virtual_memory().total // PROCESS_BYTES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that have tests on Ray first.

    They take longest: a process that is given one of them last would run alone at the end.
    """
    on_ray = {item.path for item in items if "ray" in item.keywords or "cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in on_ray)


@pytest.fixture(autouse=True)
def deterministic(request):
    """Draws from the global generator are the same in each run; on the CPU an operation without a repeatable form is
    an error, and memory not yet written is NaN.
    """
    torch.manual_seed(0)
    # Not `use_deterministic_algorithms`: that imports the compiler.
    torch.set_deterministic_debug_mode("default" if "gpu" in request.keywords else "error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """The package is silent again after a test of a command, which writes for its user."""
    with logger_restored():
        yield


@pytest.fixture
def heard(silent) -> list[str]:
    """What the package logs for its user while the test runs."""
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
    """What stands behind the question mark in the URI of a bucket on the tests' own S3 server, empty at first."""
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
    """The URI of a folder in a new bucket."""
    from pyarrow.fs import FileSystem

    name = f"bucket{next(_buckets)}"
    store, _ = FileSystem.from_uri(f"s3://{name}/?{s3}&allow_bucket_creation=true")
    store.create_dir(name)
    return f"s3://{name}/some/folder?{s3}"


@pytest.fixture(scope="session")
def cluster():
    """The one private Ray cluster of all tests: two CPUs and, on paper only, two GPUs."""
    from condkd_ray.cluster.connection import connect

    with connect("local", cpus=2, gpus=2):
        yield
