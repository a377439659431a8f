"""Runs a sweep to whose cluster a node is added that does not have the storage; prints how it ended, as JSON.

usage: node_without_storage.py FOLDER
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.cluster import machine
from chaos.small_machine import NotAllowed

from cluster.drivers import driving
from condkd_ray.cluster.connection import LOOPBACK
from condkd_ray.cluster.storage_check import MARKER

NOT_ALLOWED = 77
"""Exit code without permission to mount a folder."""


@contextmanager
def node_without(folder: Path, address: str) -> Iterator[None]:
    """Add a node with one CPU on which `folder` is another, empty folder; end it after the block.

    Raises `NotAllowed` without permission.
    """
    apart = ["unshare", "--mount", "--propagation", "private"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"]).returncode:
        raise NotAllowed("no permission to run a process with file systems of its own")
    ray = Path(sys.executable).with_name("ray")
    start = f"mount -t tmpfs tmpfs '{folder}' && exec '{ray}' start --address {address} --num-cpus 1 --block"
    environment = os.environ | {LOOPBACK: "1"}  # otherwise the command starts no node of a private cluster
    options = {"env": environment, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([*apart, "sh", "-c", start], **options) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def main(folder: Path) -> int:
    """Return the exit code."""
    with machine(nodes=1) as made, driving(folder, made.address, times=20) as driver:
        driver.until("done a", "round b 2")
        markers = [path for path in folder.iterdir() if path.is_file() and path.name.startswith(MARKER)]
        try:
            with node_without(folder, made.address):
                code = driver.end()
        except NotAllowed as error:
            print(error, file=sys.stderr)
            return NOT_ALLOWED
    print(json.dumps({"code": code, "markers": len(markers), "address": made.address, "lines": driver.lines}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
