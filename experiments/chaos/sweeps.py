"""Runs experiments while faults strike at seeded times, and runs a command again after its process was killed.

Everything is on this machine: a cluster of several raylets, each with one CPU, and the experiment's driver. Processes
to kill are found in the process table and receive SIGKILL.
"""

import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from chaos import small_disk, small_machine
from chaos.cluster import Machine, machine
from chaos.comparison import check_whole, differences
from chaos.plan import Kind
from chaos.processes import TITLES, kill, named
from condkd_ray.report.tensorboard.writer import FOLDER
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.study.storage import JOURNAL

# A child of the package's logger, so that the flags for logging apply.
log = logging.getLogger("condkd_ray.chaos")

STALL_SECONDS = 600.0
"""A sweep that takes longer than this without a fault counts as stuck."""
HOG_SECONDS = 60.0
"""Time in which the monitor must kill a process and the driver must print it; otherwise the fault is tried again."""
SHORT = "too little memory"
"""Words that drivers print about a process killed by the monitor."""
NO_ROOM = re.compile(r"TensorBoard files cannot be written \(.*No space left on device\)")
"""Line that drivers print at their end while the disk is full; it names the file if Python's error does."""
IDLE = 3
"""Number of sweeps of each experiment in which the next fault may find nothing to hit, before the soak fails."""
KILLED = -signal.SIGKILL


@dataclass
class Sweep:
    """An experiment that is running to its end."""

    command: Sequence[str]
    out: Path
    log_file: Path
    records: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Records seen so far, each with its inode and modification time."""
    driver: subprocess.Popen[bytes] | None = None
    hit: bool = False
    """True if the soak itself killed the driver."""
    reports: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to the log file."""
        with self.log_file.open("a", encoding="utf-8") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def report(self) -> subprocess.Popen[bytes]:
        """Start `condkd report` on the experiment."""
        return self.start([sys.executable, "-m", "condkd_ray", "report", str(self.out)])

    @property
    def events(self) -> Path:
        """Folder of the experiment's TensorBoard files."""
        return self.out / FOLDER

    def end_driver(self) -> None:
        """Kill the driver, if it runs."""
        assert self.driver is not None
        if self.driver.poll() is None:
            self.hit = True
            kill(self.driver.pid)
        self.driver.wait()


class Chaos:
    """Strikes with the faults of `plan` while experiments run, and collects the differences; `plan` is what remains."""

    def __init__(self, machine: Machine | None, plan: Sequence[tuple[Kind, float]], seed: int = 0):
        self._machine, self.plan = machine, list(plan)
        self._rng = random.Random(seed + 1)
        self._due = 0.0
        self._strikes: Mapping[Kind, Callable[[Sweep], bool]] = {
            "trial": self._kill_one("trial"),
            "pool": self._kill_one("pool"),
            "loader": self._kill_one("loader"),
            "driver": self._kill_driver,
            "node": self._lose_node,
            "memory": self._crowd_memory,
            "report": self._report_beside,
            "disk": self._fill_disk,
            "journal": self._tear_journal,
        }
        self.struck, self.sweeps = Counter[Kind](), 0
        self.wrong: list[str] = []
        """Differences between sweeps and the calm run, one per line."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.struck.items()))
        good = "no finished trial lost, none run twice; records, tables, study and TensorBoard those of a calm run."
        return f"{self.struck.total()} faults ({kinds}), {self.sweeps} sweeps: {'; '.join(self.wrong) or good}"

    def soak(self, commands: Mapping[str, Sequence[str]], folder: Path) -> None:
        """Run each experiment `command --out ...` once undisturbed, then in turns until all faults of the plan struck.

        All files stay under `folder`: the outputs, and the commands' output in `log.txt`. Raises `AssertionError` if a
        command fails or is stuck, or if an existing record is lost or written again.
        """
        log_file = folder / "log.txt"
        for name, command in commands.items():
            Chaos(self._machine, []).sweep(command, folder / f"calm-{name}", log_file)
            check_whole(folder / f"calm-{name}")
        idle = 0
        for name, command in cycle(commands.items()):
            if not self.plan:
                break
            self.sweeps += 1
            out, before = folder / f"{name}{self.sweeps}", len(self.plan)
            self.sweep(command, out, log_file)
            idle = idle + 1 if len(self.plan) == before else 0
            assert idle < IDLE * len(commands), f"a fault, {self.plan[0][0]}, found nothing to hit in {idle} sweeps"
            left = [path for kind in ("trials", "chunks") for path in (out / kind).glob("*/")]
            found = differences(out, folder / f"calm-{name}") + [f"{path} was left behind" for path in left]
            found += [f"there is a traceback in {log_file}"] * (occurrences(log_file, "Traceback") > 0)
            log.info(f"{out.name}: {'; '.join(found) or 'as undisturbed'}")
            self.wrong += [f"{out.name}: {line}" for line in found]

    def sweep(self, command: Sequence[str], out: Path, log_file: Path) -> None:
        """Run one experiment to its end; its command runs again after each kill of the driver."""
        sweep = Sweep([*command, "--out", str(out)], out, log_file)
        with ExitStack() as stack:
            stack.callback(small_disk.free, sweep.events)
            self._wait()
            code = KILLED
            while code == KILLED:
                sweep.driver, sweep.hit = sweep.start(sweep.command), False
                try:
                    code = self._watch(sweep, sweep.driver)
                finally:
                    sweep.end_driver()
                assert sweep.hit or code != KILLED, f"a driver was killed, and not by us; see {log_file}"
            assert code == 0, f"{' '.join(sweep.command)} ended with exit code {code}; see {log_file}"
            if sweep.events.is_mount():  # the driver's last message asks for space
                small_disk.free(sweep.events)
                told = NO_ROOM.search(log_file.read_text(encoding="utf-8", errors="replace"))
                assert told, f"no message about the full disk at {sweep.events}; see {log_file}"
                sweep.reports.append(sweep.report())
            codes = [report.wait(STALL_SECONDS) for report in sweep.reports]
            assert not any(codes), f"reports beside {out} ended with exit codes {codes}; see {log_file}"

    def _watch(self, sweep: Sweep, driver: subprocess.Popen[bytes]) -> int:
        """Strike while the driver runs, and return its exit code."""
        while driver.poll() is None:
            assert time.monotonic() < self._due + STALL_SECONDS, f"no end of {sweep.out} within {STALL_SECONDS:g} s"
            if self.plan and time.monotonic() >= self._due:
                kind, _ = self.plan[0]
                if self._strikes[kind](sweep):
                    self.struck[kind] += 1
                    log.info(f"fault {self.struck.total()}: {kind}")
                    self.plan.pop(0)
                    self._wait()
            check_untouched(sweep.out, sweep.records)
            time.sleep(0.1)
        check_untouched(sweep.out, sweep.records)
        return driver.returncode

    def _wait(self) -> None:
        self._due = time.monotonic() + (self.plan[0][1] if self.plan else 0.0)

    # Each strike returns True if there was something of its kind to hit.

    def _kill_one(self, kind: str) -> Callable[[Sweep], bool]:
        def strike(sweep: Sweep) -> bool:
            victims = named(TITLES[kind], os.getpid())
            if victims:
                kill(self._rng.choice(victims))
            return bool(victims)

        return strike

    def _kill_driver(self, sweep: Sweep) -> bool:
        sweep.end_driver()
        return True

    def _lose_node(self, sweep: Sweep) -> bool:
        assert self._machine is not None
        self._machine.lose(self._rng.randrange(len(self._machine.nodes)))
        self._machine.grow()
        return True

    def _crowd_memory(self, sweep: Sweep) -> bool:
        small = small_machine.here()
        assert small is not None, "memory faults need a small machine"
        before, until = occurrences(sweep.log_file, SHORT), time.monotonic() + HOG_SECONDS
        if not named(TITLES["trial"], os.getpid()):
            return False
        with small.hog():
            while occurrences(sweep.log_file, SHORT) == before:
                if time.monotonic() > until or sweep.driver is None or sweep.driver.poll() is not None:
                    return False
                check_untouched(sweep.out, sweep.records)
                time.sleep(0.1)
        return True

    def _report_beside(self, sweep: Sweep) -> bool:
        if not (sweep.out / "experiment.json").is_file():
            return False
        sweep.reports.append(sweep.report())
        return True

    def _fill_disk(self, sweep: Sweep) -> bool:
        """Fill the disk of the TensorBoard files until the driver ends, which then prints that it cannot write them."""
        if not sweep.events.is_dir() or sweep.events.is_mount():
            return False
        small_disk.mount(sweep.events, "16k")
        small_disk.fill(sweep.events)
        return True

    def _tear_journal(self, sweep: Sweep) -> bool:
        journal = sweep.out / JOURNAL
        if not journal.is_file() or not journal.stat().st_size:
            return False
        sweep.end_driver()
        content = journal.read_bytes()
        last = content.rstrip(b"\n").rpartition(b"\n")[2]
        os.truncate(journal, len(content) - 1 - self._rng.randrange(1, len(last)))
        return True


def soaked(
    experiments: Callable[[Path], Mapping[str, Sequence[str]]],
    folder: Path,
    plan: Sequence[tuple[Kind, float]],
    seed: int,
) -> Chaos:
    """Run the soak of `plan` on a new cluster. `experiments` returns the commands (see `Chaos.soak`) for a folder."""
    open_folder(folder, "soak", fresh=folder.is_dir())
    with machine() as made:
        chaos = Chaos(made, plan, seed)
        given = experiments(folder).items()
        chaos.soak({name: [*command, "--address", made.address] for name, command in given}, folder)
    return chaos


def occurrences(log_file: Path, words: str) -> int:
    """Return how often the words occur in the log."""
    return log_file.read_text(encoding="utf-8", errors="replace").count(words)


def check_untouched(out: Path, seen: dict[Path, tuple[int, int]]) -> None:
    """Add the records under `out` to `seen`. Raises `AssertionError` if a record seen before was lost or rewritten."""
    for path, before in seen.items():
        assert path.is_file(), f"{path} is lost"
        assert _identity(path) == before, f"{path} was written twice"
    for path in (out / "records").glob("*.json"):
        seen.setdefault(path, _identity(path))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
