import contextlib
import importlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from places import TESTS

import condkd_ray
from cluster import processes
from condkd_ray.cluster import connection as module
from condkd_ray.cluster.connection import (
    JOB,
    as_ctrl_c,
    check_versions,
    connect,
    handling,
    in_job_folder,
    interrupts_kept,
    runtime_env,
)
from condkd_ray.core.method import ClusterError, InputError


def refused(address: str) -> str:
    begin = time.monotonic()
    with pytest.raises(InputError) as caught, connect(address):
        pass
    assert time.monotonic() - begin < 5
    return str(caught.value)


def test_an_address_without_a_listener_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"'127.0.0.1:{port}', but nothing answers there" in refused(f"127.0.0.1:{port}")


def test_a_server_other_than_ray_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "the server there is not Ray" in refused(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "somewhere", "host:port", "host:0", ":6379"])
def test_other_forms_of_address_are_refused(address):
    assert f'Ray address is {address!r}; accepted: "host:port"' in refused(address)


def test_an_address_from_the_environment_is_checked_too(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(InputError, match="ray://"), connect():
        pass


def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with module.private():
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_temporary_folder_with_a_long_path_is_not_used_for_sockets(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    with module.private():
        assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("TMPDIR", "/short")
    with module.private():
        assert "RAY_TMPDIR" not in os.environ


def test_a_connected_process_stays_connected(cluster):
    import ray

    with connect("local"):
        pass
    assert ray.is_initialized()


def token_written() -> int | None:
    """Return when Ray's token in the home folder was last written, in ns; None if there is none."""
    token = Path.home() / ".ray" / "auth_token"
    return token.stat().st_mtime_ns if token.exists() else None


TOKEN_WRITTEN = token_written()
"""The time before any test ran: programs other than the tests may have written one."""


def test_all_sockets_are_on_loopback_and_the_home_folder_is_not_changed(cluster):
    pids = processes.descendants(os.getpid())
    assert any("gcs_server" in command for command in pids.values())
    assert processes.listening({os.getpid(), *pids}) <= processes.LOOPBACK
    assert token_written() == TOKEN_WRITTEN


@pytest.mark.parametrize(("name", "value"), [("ray_version", "2.11.0"), ("python_version", "3.9.1")])
def test_a_cluster_with_another_version_of_ray_or_python_is_refused_with_both_versions(cluster, name, value):
    import ray

    address = ray.get_runtime_context().gcs_address
    check_versions(address)
    place = {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}
    client = importlib.import_module("ray._raylet").GcsClient(address=address)
    kept = client.internal_kv_get(**place)
    metadata = json.loads(kept) | {name: value}
    client.internal_kv_put(value=json.dumps(metadata).encode(), overwrite=True, **place)
    try:
        with pytest.raises(InputError) as caught:
            check_versions(address)
    finally:
        client.internal_kv_put(value=kept, overwrite=True, **place)
    cluster_versions = f"a cluster of Ray {metadata['ray_version']} on Python {metadata['python_version']}; accepted: "
    assert f"{cluster_versions}Ray {ray.__version__} on Python {platform.python_version()}" in str(caught.value)


def test_the_runtime_environment_ships_the_package_of_the_driver(monkeypatch):
    monkeypatch.delenv(JOB, raising=False)
    assert runtime_env() == {
        "py_modules": [str(Path(condkd_ray.__file__).parent)],
        "excludes": ["**/__pycache__/"],
    }


def test_a_job_with_a_working_folder_needs_no_runtime_environment(monkeypatch):
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}, "metadata": {}}))
    assert runtime_env() is None
    for job in (json.dumps({"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {}}), ""):
        monkeypatch.setenv(JOB, job)
        assert runtime_env() is not None


def test_a_folder_inside_a_job_is_recognised(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(JOB, raising=False)
    assert not in_job_folder(Path("runs/x"))
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    assert in_job_folder(Path("runs/x"))
    assert not in_job_folder(tmp_path.parent / "x")


@pytest.fixture
def fails_to_start(monkeypatch) -> Iterator[Callable[[Exception], list[dict]]]:
    """A function that makes `ray.init` raise an error after it has started a process; it returns the calls."""
    import ray

    started: list[subprocess.Popen] = []

    def fail(error: Exception) -> list[dict]:
        calls: list[dict] = []

        def init(**given) -> None:
            calls.append(given)
            rays = [str(Path(ray.__file__).parent / "raylet")]
            for more in (rays, []):
                started.append(process := subprocess.Popen([sys.executable, "-c", SLEEP, *more]))
                while not psutil.Process(process.pid).cmdline():
                    time.sleep(0.01)  # between fork and exec it has no command line
            raise error

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        return calls

    yield fail
    for process in started:
        process.kill()
        process.wait()


SLEEP = "import time; time.sleep(1000)"
SLOW = Exception("The current node timed out during startup. This\ncould happen because")


@pytest.mark.parametrize("error", [SLOW, ValueError("the amount of memory on this node"), RuntimeError("no GCS")])
def test_a_failing_start_of_ray_is_tried_twice_and_reported_in_one_sentence(fails_to_start, logged, error):
    calls = fails_to_start(error)
    reason = str(error).splitlines()[0]
    message = f"Ray failed to start on this machine, tried twice ({reason})"
    with pytest.raises(ClusterError) as caught, connect("local"):
        pass
    assert str(caught.value) == message
    assert logged == [f"Ray failed to start ({reason}); trying once more"]
    assert len(calls) == 2
    # Processes that others have started in the meantime keep running.
    left = [command for command in processes.descendants(os.getpid()).values() if SLEEP in command]
    assert len(left) == 2
    assert not any("raylet" in command for command in left)


def test_a_single_node_gets_longer_timeouts_unless_the_user_has_set_them(fails_to_start, monkeypatch):
    names = module.FAILURE_THRESHOLD, module.PORT_WAIT
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with module.private():
        assert [os.environ.get(name) for name in names] == [None, "120"]
    found: list[str | None] = []

    def read_environment(*, several_nodes: bool) -> None:
        found[:] = [os.environ.get(name) for name in names]

    monkeypatch.setattr(module, "read_environment", read_environment)
    for exported, expected in ((None, ["20", "120"]), ("7", ["7", "7"]), ("", ["20", "120"])):
        for name in names if exported is not None else ():
            monkeypatch.setenv(name, exported)
        fails_to_start(SLOW)
        with pytest.raises(ClusterError), connect("local"):
            pass
        assert found == expected


def test_ctrl_c_during_a_failing_start_of_ray_ends_it_without_a_second_attempt(fails_to_start, monkeypatch):
    import ray

    calls = fails_to_start(SLOW)
    fail = ray.init

    def init(**given) -> None:
        if not calls:
            os.kill(os.getpid(), signal.SIGINT)
        fail(**given)

    monkeypatch.setattr(ray, "init", init)
    with handling(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt), connect("local"):
        pass
    assert len(calls) == 1


def test_a_private_cluster_has_the_cpus_of_this_process_and_enough_memory(fails_to_start, monkeypatch):
    calls = fails_to_start(SLOW)
    monkeypatch.setattr(module, "usable_cpus", lambda: 3)
    for cpus, number in ((None, 3), (5, 5)):
        with pytest.raises(ClusterError), connect("local", cpus=cpus):
            pass
        assert calls[-1]["num_cpus"] == number
    assert calls[0]["_memory"] >= 4 * calls[0]["object_store_memory"] > 0


def test_a_small_container_on_a_large_machine_gets_a_small_store(fails_to_start, monkeypatch):
    calls = fails_to_start(SLOW)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 2**30)
    with pytest.raises(ClusterError), connect("local"):
        pass
    assert calls[0]["object_store_memory"] <= 2**28
    assert calls[0]["_memory"] == 2**30


def test_rays_log_lines_about_lost_processes_are_skipped_although_ray_was_imported_before(cluster):
    from ray._private import ray_logging

    for words in (ray_logging.stdout_deduplicator, ray_logging.stderr_deduplicator):
        assert words.skip_re is not None
        assert words.skip_re.search("A worker died or was killed while executing")
        assert words.skip_re.search("Task SyntheticPool.claim failed. There are infinite retries remaining, so")


@pytest.mark.fault
def test_a_raylet_that_dies_at_its_start_is_started_again_and_twice_is_an_error(tmp_path):
    for deaths, code in ((1, 0), (2, 1)):
        command = [sys.executable, str(TESTS / "cluster" / "dying_raylets.py"), str(deaths)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "Ray failed to start (" in done.stderr
        lines = done.stderr.splitlines()
        assert (lines[-1].startswith("failed: Ray failed to start on this machine, tried twice (")) == (code == 1)


@pytest.mark.fault
def test_a_program_restricted_to_one_cpu_has_a_cluster_of_one_cpu():
    code = (
        "import ray, os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from condkd_ray.cluster.connection import connect\n"
        "from condkd_ray.cluster.options import slots\n"
        "with connect('local'): print(slots(1.0, 0.0), ray.cluster_resources()['CPU'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["1", "1.0"], done.stderr


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_sigterm_ends_a_program_as_ctrl_c_does_even_if_sigint_is_ignored(before):
    with handling(signal.SIGINT, before), handling(signal.SIGTERM, as_ctrl_c):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is before


def interrupted(times: int) -> list[int]:
    """Press Ctrl-C `times` times in the block; return the presses after which it continued.

    The list ends with 0 if the code behind the block was reached.
    """
    reached = []
    with handling(signal.SIGINT, signal.default_int_handler), contextlib.suppress(KeyboardInterrupt):
        with interrupts_kept():
            for press in range(1, times + 1):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(press)
        reached.append(0)
    return reached


def test_ctrl_c_takes_effect_at_the_end_of_the_block_and_a_second_one_at_once():
    assert interrupted(0) == [0]
    assert interrupted(1) == [1]
    assert interrupted(3) == [1]


def test_ctrl_c_takes_effect_also_if_the_block_raises():
    def fail() -> None:
        with interrupts_kept() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came == [signal.SIGINT]
            raise OSError("it fails too")

    with handling(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        fail()
