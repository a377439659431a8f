"""Checks of `condkd dashboard` before its servers start; running servers are in `tests/browser` and `tests/runs`."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from condkd_ray.commands import dashboard
from condkd_ray.commands.dashboard import HOST, Dashboard, servers
from condkd_ray.core.method import InputError
from condkd_ray.core.records import Manifest, write_manifest
from condkd_ray.report.tensorboard.writer import FOLDER
from condkd_ray.study.storage import JOURNAL


@pytest.fixture
def taken() -> Iterator[int]:
    """The port of a running server that does not speak HTTP."""
    with socket.create_server((HOST, 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-somebody\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("which", ["optuna", "tensorboard"])
@pytest.mark.parametrize("port", [-1, 65536, None])
def test_an_unavailable_port_is_refused_before_its_server_starts(tmp_path, monkeypatch, taken, which, port):
    (tmp_path / JOURNAL).touch()
    wanted = taken if port is None else port
    started: list[list[str]] = []
    monkeypatch.setattr(dashboard.subprocess, "Popen", lambda command, **_: started.append(command))
    message = rf"^port of \w+ is {wanted}; accepted: one that is free, or 0 for any"
    command = Dashboard(out=tmp_path, **{f"{which}_port": wanted})
    with pytest.raises(InputError, match=message), servers(command):
        pass
    assert not started


def test_if_one_port_is_unavailable_no_server_starts(tmp_path, monkeypatch, taken):
    (tmp_path / JOURNAL).touch()
    started: list[list[str]] = []
    monkeypatch.setattr(dashboard.subprocess, "Popen", lambda command, **_: started.append(command))
    with pytest.raises(InputError, match="TensorBoard"), servers(Dashboard(out=tmp_path, tensorboard_port=taken)):
        pass
    assert not started


@pytest.fixture
def server_calls(monkeypatch) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of each server, which ends at once instead of starting."""
    calls = []
    ended = SimpleNamespace(poll=lambda: 1, terminate=lambda: None, wait=lambda: 1)

    def start(command, *, env, **_):
        calls.append((command, env))
        return ended

    monkeypatch.setattr(dashboard.subprocess, "Popen", start)
    return calls


def start_servers(command: Dashboard) -> None:
    """Start servers that end at once."""
    with pytest.raises(InputError, match="no answer"), servers(command):
        pass


def test_a_port_taken_by_another_program_at_the_start_is_replaced(tmp_path, monkeypatch, taken, capsys):
    (tmp_path / FOLDER).mkdir()
    real, calls = dashboard.free_port, []

    def late(name: str, wanted: int) -> int:
        calls.append(wanted)
        # The first call only checks the port; after the second, another program has taken the port.
        return taken if len(calls) == 2 else real(name, wanted)

    monkeypatch.setattr(dashboard, "free_port", late)
    with servers(Dashboard(out=tmp_path)) as running:
        assert [server.process.poll() for server in running] == [None]
    printed = capsys.readouterr().out
    assert "TensorBoard" in printed
    assert f":{taken}/" not in printed


def test_a_server_without_http_does_not_count_as_an_answer(taken):
    assert not dashboard.answers(taken)


@pytest.mark.parametrize(
    ("set_before", "spared"),
    [
        ({}, f"{HOST},localhost"),
        ({"no_proxy": "*"}, f"*,{HOST},localhost"),
        ({"no_proxy": "a.b", "no_grpc_proxy": "c.d"}, f"c.d,{HOST},localhost"),
    ],
)
def test_the_servers_reach_each_other_without_a_proxy_and_other_hosts_as_before(
    tmp_path, monkeypatch, server_calls, set_before, spared
):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    start_servers(Dashboard(out=tmp_path))
    (found,) = [environment for _, environment in server_calls]
    assert found.get("no_proxy") == set_before.get("no_proxy")
    assert found["no_grpc_proxy"] == spared


def test_an_invalid_study_is_refused_before_a_server_starts(tmp_path, monkeypatch, server_calls):
    monkeypatch.chdir(tmp_path)
    write_manifest(Path("out"), Manifest(experiment="search", question="", command="", created=""))
    journal = Path("out") / JOURNAL
    for content, message in (
        (
            b'{"op_code":0,"worker_id":"a","study_name":"s","directions":[2]}\n{"op_co{}\n'
            b'{"op_code":1,"worker_id":"a","study_id":0}\n',
            "^line 2 of out/",
        ),
        (b"notes", "^line 1 of out/"),
    ):
        journal.write_bytes(content)
        with pytest.raises(InputError, match=message):
            dashboard.dashboard(Dashboard(out=Path("out")))
    with pytest.raises(InputError, match=r"--study-storage is 'none\.journal'; accepted: the storage"):
        dashboard.dashboard(Dashboard(out=Path("out"), study_storage="none.journal"))
    assert not Path("none.journal").exists()
    assert not server_calls
    # The path is absolute, because the link of Optuna's lock must lead to the journal from any working directory.
    start_servers(Dashboard(out=Path("out")))
    assert str(tmp_path / "out" / JOURNAL) in server_calls[-1][0]
    start_servers(Dashboard(out=Path("out"), study_storage="sqlite:///s.db"))
    assert "sqlite:///s.db" in server_calls[-1][0]
