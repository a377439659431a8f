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

import pytest
import torch
from hypothesis import settings
from places import EXPERIMENTS

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


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with today's numbers")
    parser.addoption("--fuzz", type=int, default=85, help="how many files of each kind are tried")


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
    """The package is silent again after a test of a command, which speaks."""
    logger = logging.getLogger("condkd_ray")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1:]


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
