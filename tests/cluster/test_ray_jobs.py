"""A cluster as users have it: a head that was started separately and does not have this package."""

import importlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from places import CHECKOUT

from condkd_ray.core.records import read_records

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SMALL = {
    "inversion": {"steps": 1, "batch": 32, "width": 8},
    "distiller": {"steps": 2, "batch": 32},
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}},
}
WHERE = """
import sys
import ray
from condkd_ray.cluster.connection import connect

def where():
    import condkd_ray
    return condkd_ray.__file__

with connect(sys.argv[1]):
    print(ray.get(ray.remote(where).remote()))
"""
RELABEL = """
import json, sys
from ray._raylet import GcsClient
client, place = GcsClient(address=sys.argv[1]), {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}
there = json.loads(client.internal_kv_get(**place)) | {"ray_version": sys.argv[2]}
client.internal_kv_put(value=json.dumps(there).encode(), overwrite=True, **place)
"""


def has_jobs() -> bool:
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_jobs(), reason="ray[default], which has the job server, is not installed"),
]


@dataclass(frozen=True)
class Head:
    address: str
    jobs: str
    folder: Path
    environment: dict[str, str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster started by `ray start --head` on loopback, in a process that is ended by its process id."""
    # The folder holds sockets, whose paths may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    port, jobs = free_port(), free_port()
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    own |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    places = [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    places += ["--dashboard-host=127.0.0.1", f"--dashboard-port={jobs}"]
    command = [*RAY, "start", "--head", "--block", "--num-cpus=2", *places]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (log_text := (folder / "log").read_text()):
            assert process.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{jobs}", folder, own)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def ended(command: list[str], head: Head, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=head.folder, env=head.environment | more, capture_output=True, text=True, timeout=300
    )


def experiment(out: Path) -> list[str]:
    (out.parent / "small.yaml").write_text(yaml.safe_dump(SMALL))
    fixed = ["--arms", "guided", "--no-reference", "--ipcs", "1", "--seeds", "0", "--rounds", "2"]
    fixed += ["--teacher-epochs", "1", "--condensation", "random_real", "--config", str(out.parent / "small.yaml")]
    return ["experiments/ablate_ipc.py", *fixed, "--out", str(out), "--cache", str(out.parent / "cache")]


def test_workers_of_a_cluster_get_the_package_of_the_driver(head):
    done = ended([sys.executable, "-c", WHERE, head.address], head, PYTHONPATH=str(CHECKOUT))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(head.folder)


def test_a_submitted_job_ships_its_code_and_writes_its_results(head, tmp_path):
    wanted = json.dumps({"excludes": [".git", "tests"]})
    submit = [*RAY, "job", "submit", "--address", head.jobs, "--working-dir", str(CHECKOUT)]
    done = ended([*submit, "--runtime-env-json", wanted, "--", "python", *experiment(tmp_path / "out")], head)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = read_records(tmp_path / "out")
    assert record.status == "finished"
    # The job ran in a copy without a git history.
    assert record.git == ""


def test_a_job_whose_results_would_be_deleted_with_it_is_refused(head, tmp_path):
    script, *flags = experiment(tmp_path / "out")
    submit = [*RAY, "job", "submit", "--address", head.jobs, "--working-dir", str(CHECKOUT)]
    submit += ["--runtime-env-json", json.dumps({"excludes": [".git", "tests"]})]
    done = ended([*submit, "--", "python", script, *flags, "--out", "runs/lost"], head)
    assert done.returncode != 0
    assert "--out is 'runs/lost'; accepted: a folder that outlives the job" in done.stdout + done.stderr


def test_a_cluster_with_another_version_of_ray_is_refused_with_exit_code_2(head, tmp_path):
    script, *flags = experiment(tmp_path / "out")
    ours = importlib.import_module("ray").__version__
    relabel = [sys.executable, "-c", RELABEL, head.address]
    assert ended([*relabel, "2.11.0"], head).returncode == 0
    try:
        command = [sys.executable, str(CHECKOUT / script), *flags, "--address", head.address]
        done = ended(command, head, PYTHONPATH=str(CHECKOUT))
    finally:
        ended([*relabel, ours], head)
    assert done.returncode == 2, done.stderr
    assert "a cluster of Ray 2.11.0 on Python" in done.stderr
    assert f"accepted: Ray {ours} on Python" in done.stderr
    assert not (tmp_path / "out" / "records").exists()
    assert not (tmp_path / "cache").exists()
