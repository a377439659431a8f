"""Drivers that are interrupted, killed, or lose nodes or disk space: no process is left, the same command continues."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos.cluster import Machine, machine, process_id
from chaos.processes import TITLES, kill, titles
from chaos.small_disk import fill, small_disk
from chaos.small_machine import NotAllowed
from places import CHECKOUT, TESTS, permitted

from cluster import processes
from cluster.drivers import Driver, assert_gone, assert_undisturbed, driving, finish, outcomes
from cluster.node_without_storage import NOT_ALLOWED

SECOND = {"round b 2", "round c 2", "done a"}
"""Beginnings of lines that the driver prints once one trial is done and two are running."""


def checkpoints(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("trials/*/state.safetensors")}


@pytest.mark.fault
def test_sigterm_ends_a_sweep_cleanly_and_leaves_no_process(tmp_path):
    with driving(tmp_path) as driver:
        driver.until("listening", *SECOND)
        pids = driver.pids()
        driver.hit(signal.SIGTERM)
        assert driver.end() == 130
    (listening,) = [line for line in driver.lines if line.startswith("listening ")]
    assert set(listening.split()[1:]) <= processes.LOOPBACK
    assert driver.lines[-1] == "interrupted"
    assert_gone(pids)
    assert {"b", "c"} <= checkpoints(tmp_path) | set(outcomes(tmp_path))
    assert not (tmp_path / "trials" / "a").exists()


@pytest.mark.fault
@pytest.mark.parametrize("group", [False, True], ids=["driver", "terminal"])
@pytest.mark.parametrize("times", [1, 2])
def test_after_ctrl_c_nothing_runs_nothing_is_lost_and_the_same_command_continues(tmp_path, times, group):
    with driving(tmp_path) as driver:
        driver.until(*SECOND)
        pids = driver.pids()
        driver.hit(signal.SIGINT, group=group)
        if times == 2:
            time.sleep(0.2)
            driver.hit(signal.SIGINT, group=group)
            hit = time.monotonic()
        assert driver.end() == 130, driver.lines
        assert times == 1 or time.monotonic() - hit < 60
    assert driver.lines[-1] in ("interrupted", "interrupted; the same command continues")
    assert not any("Traceback" in line for line in driver.lines)
    assert_gone(pids)
    assert "a" in outcomes(tmp_path)
    finish(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_ctrl_c_while_the_cluster_starts_leaves_no_process(tmp_path, seconds):
    with driving(tmp_path) as driver:
        driver.until("connecting")
        time.sleep(seconds)
        pids = driver.pids()
        driver.hit(signal.SIGINT, group=True)
        assert driver.end() == 130, driver.lines
    assert not any("Traceback" in line for line in driver.lines)
    assert_gone(pids)


@pytest.mark.fault
def test_a_killed_driver_leaves_no_process_and_the_same_command_continues(tmp_path):
    with driving(tmp_path) as driver:
        driver.until(*SECOND)
        pids = driver.pids()
        driver.hit(signal.SIGKILL)
        assert driver.end() == -signal.SIGKILL
    assert_gone(pids)
    assert "a" in outcomes(tmp_path)
    # No file of Tune is needed to continue; reading one of these would raise an error.
    for path in (tmp_path / "tune").rglob("*"):
        if path.is_file():
            path.write_bytes(b"no pickle")
    finish(tmp_path)


def home_of_the_pool(made: Machine, driver: Driver) -> int:
    """Return the index of the node, of two, on which the pool runs.

    Ray may also start the pool on the head, which must not be lost; there it is killed, so that Ray starts it anew.
    """
    while driver.runs:
        for which, node in enumerate(made.nodes):
            if any(title.startswith(TITLES["pool"]) for title in titles(process_id(node, "raylet")).values()):
                return which
        for pid, title in titles(os.getpid()).items():
            if title.startswith(TITLES["pool"]):
                kill(pid)
        time.sleep(0.5)
    raise AssertionError(f"the sweep ended before the pool had left the head: {driver.lines}")


@pytest.mark.fault
@pytest.mark.parametrize("with_pool", [False, True])
def test_a_sweep_completes_with_equal_numbers_although_a_node_was_lost(tmp_path, with_pool):
    with machine() as made:
        with driving(tmp_path, made.address) as driver:
            driver.until(*SECOND)
            home = home_of_the_pool(made, driver)
            made.lose(home if with_pool else 1 - home)
            made.grow()
            assert driver.end() == 0, driver.lines
        assert_undisturbed(tmp_path)


@pytest.mark.fault
def test_a_driver_that_lost_its_head_ends_and_continues_on_another_cluster(tmp_path, monkeypatch):
    # By default Ray tries to reconnect to its head for a minute; here for ten seconds.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    with machine() as made, driving(tmp_path, made.address) as driver:
        driver.until(*SECOND)
        for name in ("gcs_server", "raylet"):
            kill(process_id(made.cluster.head_node, name))
        lost = time.monotonic()
        assert driver.end() not in (0, 130), driver.lines
        print(f"ended after {time.monotonic() - lost:.0f} s:", *driver.lines[-5:], sep="\n")
    assert "a" in outcomes(tmp_path)
    with machine() as made:
        finish(tmp_path, made.address)


@pytest.mark.fault
def test_a_node_that_joins_runs_trials(tmp_path):
    with machine(nodes=1) as made, driving(tmp_path, made.address, times=20) as driver:
        driver.until("done a")
        made.grow()
        driver.until("round c 1")
        assert not any(line.startswith("done b") for line in driver.lines)


@pytest.mark.fault
def test_a_node_that_joins_without_the_storage_ends_the_sweep_with_its_name(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    # In a process of its own: after a cluster of one node, the nodes of another one are reached on loopback alone.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(TESTS / "cluster" / "node_without_storage.py"), str(folder)]
    with permitted():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        if done.returncode == NOT_ALLOWED:
            raise NotAllowed(done.stderr)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert (ended["code"], ended["markers"]) == (1, 1), ended["lines"]
    (message,) = [line for line in ended["lines"] if line.startswith("failed: ")]
    node = re.escape(ended["address"].rpartition(":")[0])
    storage = f"{re.escape(repr(str(folder)))} \\(it does not find a file that was written here\\); accepted: a folder"
    assert re.match(f"failed: node {node} cannot use the storage {storage} that all nodes share", message), message
    assert message.endswith("; the same command tries again")
    assert not any(line.startswith(("round c", "done b", "done c")) for line in ended["lines"])
    assert checkpoints(folder) == {"b"}
    assert [path for path in folder.iterdir() if path.is_file()] == []


@pytest.mark.fault
def test_full_storage_ends_the_sweep_with_the_path_and_the_same_command_continues_later(tmp_path):
    with permitted(), small_disk(tmp_path / "disk", "8m") as folder:
        with driving(folder) as driver:
            driver.until(*SECOND)
            pids = driver.pids()
            filler = fill(folder)
            assert driver.end() == 1, driver.lines
        assert driver.lines[-1].startswith("failed: ")
        assert driver.lines[-1].endswith(": No space left on device; the same command continues once there is room")
        assert str(folder) in driver.lines[-1]
        assert_gone(pids)
        filler.unlink()
        assert "a" in outcomes(folder)
        finish(folder)


def test_the_package_never_reads_a_file_of_tune():
    package = CHECKOUT / "condkd_ray"
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    for word in ("Tuner.restore", "can_restore", "pickle.load", "ResultGrid", "get_checkpoint("):
        assert word not in source
