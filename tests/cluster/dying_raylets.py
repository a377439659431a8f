"""A program whose first raylets are killed as soon as they begin.

usage: dying_raylets.py DEATHS
"""

import sys
import threading
import time

import psutil

from condkd_ray.cluster.connection import connect
from condkd_ray.commands.console.exit_codes import exit_codes


def kill_raylets(deaths: int) -> None:
    """Kill the first `deaths` raylets."""
    killed = set[int]()
    while len(killed) < deaths:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.pid not in killed and process.name() == "raylet":
                    process.kill()
                    killed.add(process.pid)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.002)


if __name__ == "__main__":
    threading.Thread(target=kill_raylets, args=[int(sys.argv[1])], daemon=True).start()
    with exit_codes(), connect("local", cpus=1):
        print("up")
