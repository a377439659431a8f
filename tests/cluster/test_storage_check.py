import os
import subprocess
import sys

import pytest
from places import TESTS

from condkd_ray.cluster.storage_check import check_reach, look
from condkd_ray.core.storage import files, locate, put_text

OF_EACH_PROCESS = "/proc/self/cwd/storage"
"""A path that is a different folder on each node."""


@pytest.mark.slow
def test_the_storage_is_checked_on_every_node(tmp_path, bucket):
    shared = tmp_path / "shared"
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [
        sys.executable,
        str(TESTS / "cluster" / "two_nodes.py"),
        str(tmp_path),
        str(shared),
        bucket,
        OF_EACH_PROCESS,
    ]
    driver = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert driver.returncode == 0, driver.stderr
    folder, uri, apart = driver.stdout.splitlines()
    assert folder == uri == "fine"
    assert apart.startswith(f"--storage is '{OF_EACH_PROCESS}', which node ")
    assert "does not find a file that was written here" in apart
    assert "accepted: a folder that all nodes share" in apart
    assert files(shared) == files(locate(bucket)) == []
    assert list((tmp_path / "first" / "storage").iterdir()) == []
    assert not (tmp_path / "second" / "storage").exists()


def test_a_folder_is_not_checked_on_a_single_machine(cluster, tmp_path):
    check_reach(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_reason_why_a_node_cannot_use_a_storage(tmp_path):
    put_text(tmp_path / "marker", "")
    assert look(tmp_path, "marker") == ""
    assert look(tmp_path, "other") == "it does not find a file that was written here"
    assert files(tmp_path) == [tmp_path / "marker"]
