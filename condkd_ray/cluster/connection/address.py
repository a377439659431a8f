"""Where a cluster is to be found, and whether what is there is one we can work with. Asked before Ray connects."""

import importlib
import os
import platform
import socket
from typing import Any

from condkd_ray.core.method import InputError, require

ADDRESS = '"host:port" of a running head node (its token in RAY_AUTH_TOKEN), or "local"'
PROBE_SECONDS = 2.0


def checked(given: str | None) -> str | None:
    """The address to connect to, `given` or in `RAY_ADDRESS`; None for a private cluster.

    Raises `InputError` where it is of a form that is not accepted, or no Ray answers there.
    """
    address = given or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return None
    # Through the client the driver, and with it all results, would live on the other machine.
    require("://" not in address, "Ray address", address, f"{ADDRESS}; not the Ray client")
    require(address != "auto", "Ray address", address, f"{ADDRESS}; nothing is discovered")
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdigit() and 0 < int(port) < 65536, "Ray address", address, ADDRESS)
    try:
        answers = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(f"Ray address is {address!r}, where nothing answers ({error}); accepted: {ADDRESS}") from None
    require(answers, "Ray address", address, f"{ADDRESS}; what answers there is no Ray")
    return address


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server is there that greets as gRPC does: with HTTP/2 settings. Raises `OSError` where none is.

    Ray itself would go on trying for minutes, and then end the process.
    """
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return True
        connection.sendall(hello)
        try:
            answer = connection.recv(9)
        except TimeoutError:
            return False
    return len(answer) > 3 and answer[3] == 4


def on_loopback_alone(address: str) -> bool:
    """Whether a head on this machine can be reached at 127.0.0.1 only; Ray would look for it at its other address."""
    import ray

    host, _, port = address.rpartition(":")
    if host not in ("localhost", "127.0.0.1"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=PROBE_SECONDS).close()
    except OSError:
        return True
    return False


def check_versions(address: str) -> None:
    """Raise `InputError` where the cluster runs another Ray, or another Python, than we do.

    Ray refuses that too, but late: a driver has connected by then, and a worker only logs it. By its rule Pythons of
    different patch releases do not match, unless `RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL` is `minor`.
    """
    import ray
    from ray._common.usage.usage_lib import get_cluster_metadata

    core: Any = importlib.import_module("ray._raylet")
    there = get_cluster_metadata(core.GcsClient(address=address))
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    theirs, ours = (
        (version, python.split(".")[:parts])
        for version, python in (
            (there["ray_version"], there["python_version"]),
            (ray.__version__, platform.python_version()),
        )
    )
    if theirs != ours:
        found = f"a cluster of Ray {there['ray_version']} on Python {there['python_version']}"
        here = f"Ray {ray.__version__} on Python {platform.python_version()}"
        raise InputError(f"Ray address is {address!r}, {found}; accepted: one of {here}, as this program")
