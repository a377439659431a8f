"""Processes of a running experiment are killed at seeded moments, and the same command is given again.

Everything is on this machine: a cluster of several raylets, each with one CPU, and the experiment's driver. What a kill
hits is found in the table of processes, and SIGKILL is what it gets.
"""

import csv
import logging
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from condkd_ray.cluster.connection import private
from condkd_ray.core.records import Record, read_records

# Below the package's own, which `speak` lets a user hear.
log = logging.getLogger("condkd_ray.chaos")

Kind = Literal["trial", "pool", "driver", "node"]
SHARES: dict[Kind, int] = {"trial": 9, "pool": 5, "driver": 4, "node": 2}
"""Of twenty kills."""
TITLES = {"trial": "ray::ImplicitFunc", "pool": "ray::SyntheticPool"}
"""What Ray calls the processes that run trials, and the pool's."""
PAUSE = (2.0, 10.0)
"""Least and most seconds between two kills."""
STALL_SECONDS = 600.0
"""A sweep that takes longer than this without being hit has got stuck."""


def schedule(kills: int, seed: int) -> list[tuple[Kind, float]]:
    """What is killed, and how long after the kill before. Each kind at least once, where there are enough kills."""
    rng, each = random.Random(seed), list[Kind](SHARES)
    kinds = each + rng.choices(each, list(SHARES.values()), k=max(kills - len(each), 0))
    del kinds[kills:]
    rng.shuffle(kinds)
    return [(kind, rng.uniform(*PAUSE)) for kind in kinds]


class Machine:
    """A cluster on this machine: a head, which is spared, and nodes with a CPU each, which can be lost and replaced."""

    def __init__(self, cluster: Any, nodes: int) -> None:
        self.cluster = cluster
        self.address = str(cluster.address)
        self.nodes = [cluster.add_node(num_cpus=1) for _ in range(nodes)]

    def lose(self, which: int) -> None:
        """All processes of a node end at once."""
        node = self.nodes.pop(which)
        raylet = process_id(node, "raylet")
        for process in [raylet, *titles(raylet)]:
            kill(process)
        self.cluster.remove_node(node, allow_graceful=False)

    def grow(self) -> None:
        """Another node with one CPU."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))


def process_id(node: Any, name: str) -> int:
    """Of a process that a node consists of, by Ray's name for it."""
    (found,) = node.all_processes[name]
    return found.process.pid


@contextmanager
def machine(nodes: int = 2, *, head_cpus: int = 0) -> Iterator[Machine]:
    """A private `Machine` for the length of a `with` block; processes started in it may connect to it."""
    with private():
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False})
        try:
            yield Machine(cluster, nodes)
        finally:
            cluster.shutdown()


class Chaos:
    """Kills by `plan`, what is left of it, while experiments run; and what came of them."""

    def __init__(self, machine: Machine, plan: Sequence[tuple[Kind, float]], seed: int = 0):
        self._machine, self.plan = machine, list(plan)
        self._rng = random.Random(seed + 1)
        self._due = 0.0
        self.killed, self.sweeps = Counter[Kind](), 0
        self.wrong: list[str] = []
        """In what sweeps differ from the calm one; a line each."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.killed.items()))
        good = "no finished trial lost, none run twice, all tables that of the undisturbed sweep."
        return f"{self.killed.total()} kills ({kinds}), {self.sweeps} sweeps: {'; '.join(self.wrong) or good}"

    def soak(self, command: Sequence[str], folder: Path) -> None:
        """Run the experiment `command --out ...` once undisturbed, then again and again until the plan is done.

        All is left under `folder`: the outputs, and in `log.txt` what the commands said. Raises `AssertionError` where
        a command fails or gets stuck, or a record that was there is lost or written again.
        """
        calm, log_file = folder / "calm", folder / "log.txt"
        Chaos(self._machine, []).sweep(command, calm, log_file)
        while self.plan:
            self.sweeps += 1
            out = folder / f"sweep{self.sweeps}"
            self.sweep(command, out, log_file)
            left = [path for name in ("trials", "chunks") for path in (out / name).glob("*/")]
            found = differences(out, calm) + [f"{path} was left behind" for path in left]
            log.info(f"{out.name}: {'; '.join(found) or 'as undisturbed'}")
            self.wrong += [f"{out.name}: {line}" for line in found]

    def sweep(self, command: Sequence[str], out: Path, log_file: Path) -> None:
        """Bring one experiment to its end, giving its command again after each kill of the driver."""
        command, records = [*command, "--out", str(out)], dict[Path, tuple[int, int]]()
        self._wait()
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            with (
                log_file.open("a", encoding="utf-8") as file,
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as driver,
            ):
                try:
                    code = self._watch(driver, out, records)
                finally:
                    kill(driver.pid)
        assert code == 0, f"{' '.join(command)} ended with exit code {code}; see {log_file}"

    def _watch(self, driver: subprocess.Popen[bytes], out: Path, records: dict[Path, tuple[int, int]]) -> int:
        while driver.poll() is None:
            assert time.monotonic() < self._due + STALL_SECONDS, f"no end of {out} within {STALL_SECONDS:g} s"
            if self.plan and time.monotonic() >= self._due and self._strike(self.plan[0][0], driver.pid):
                self.plan.pop(0)
                self._wait()
            check_untouched(out, records)
            time.sleep(0.1)
        check_untouched(out, records)
        return driver.returncode

    def _wait(self) -> None:
        self._due = time.monotonic() + (self.plan[0][1] if self.plan else 0.0)

    def _strike(self, kind: Kind, driver: int) -> bool:
        """Whether something of that kind was there to be hit."""
        if kind == "node":
            self._machine.lose(self._rng.randrange(2))
            self._machine.grow()
        elif kind == "driver":
            kill(driver)
        else:
            victims = sorted(pid for pid, title in titles(os.getpid()).items() if title.startswith(TITLES[kind]))
            if not victims:
                return False
            kill(self._rng.choice(victims))
        self.killed[kind] += 1
        log.info(f"kill {self.killed.total()}: {kind}")
        return True


def titles(ancestor: int) -> dict[int, str]:
    """Command lines of all processes below `ancestor`, by pid."""
    found = {}
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found[process.pid] = " ".join(process.cmdline())
    return found


def check_untouched(out: Path, seen: dict[Path, tuple[int, int]]) -> None:
    """Add the records under `out` to `seen`. Raises `AssertionError` where one seen before was lost or written anew."""
    for path, before in seen.items():
        assert path.is_file(), f"{path} is lost"
        assert _identity(path) == before, f"{path} was written twice"
    for path in (out / "records").glob("*.json"):
        seen.setdefault(path, _identity(path))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def kill(pid: int) -> None:
    """If it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def differences(out: Path, other: Path) -> list[str]:
    """In what `out` differs from `other`, a line each: trials, any number in them, tables.

    Times may differ, and which of the trials that share images has made them.
    """
    found, expected = ({r.config_hash: _numbers(r) for r in read_records(folder)} for folder in (out, other))
    lines = [f"{key[:12]} is missing" for key in expected if key not in found]
    lines += [f"{key[:12]} is not in {other}" for key in found if key not in expected]
    lines += [f"{key[:12]} has other numbers" for key in found if key in expected and found[key] != expected[key]]
    return lines + ["the tables differ"] * (_table(out) != _table(other))


def _numbers(record: Record) -> str:
    """Written out, so that NaN equals NaN; no two floats are written alike."""

    def lasting(row: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in row.items() if not name.startswith(("time/", "pool/"))}

    rounds = [lasting(row) for row in record.history]
    return repr((record.status, lasting(record.metrics), rounds, record.outcome.predictions, record.outcome.held))


def _table(out: Path) -> list[list[str]]:
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [row for row in rows if not (row[4].startswith(("time/", "pool/")) or row[4].endswith("_seconds"))]
