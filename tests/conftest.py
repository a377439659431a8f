"""Its presence puts this folder on the import path, so that every test can `import toy`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run, and no time limit on a busy machine.
settings.register_profile("condkd_ray", deadline=None, derandomize=True, database=None)
settings.load_profile("condkd_ray")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with today's numbers")


@pytest.fixture(autouse=True)
def deterministic(request):
    """On the CPU an operation without a repeatable form is an error, and memory not yet written is NaN."""
    # Not `use_deterministic_algorithms`: that imports the compiler.
    torch.set_deterministic_debug_mode("default" if "gpu" in request.keywords else "error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="session")
def cluster():
    """The one private Ray cluster of all tests: two CPUs and, on paper only, two GPUs."""
    from condkd_ray.cluster.connect import connect

    with connect("local", cpus=2, gpus=2):
        yield
