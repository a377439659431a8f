"""Faults strike experiments at seeded moments, and a command whose process was killed is given again.

Everything is on this machine: a cluster of several raylets, each with one CPU, and the experiment's driver. What is to
be killed is found in the table of processes, and gets SIGKILL.
"""

import logging
import os
import random
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

# Below the package's own, which `speak` lets a user hear.
log = logging.getLogger("condkd_ray.chaos")

STALL_SECONDS = 600.0
"""A sweep that takes longer than this without being hit has got stuck."""
HOG_SECONDS = 60.0
"""In which the monitor must have ended a process, which the driver must have told; otherwise it is tried again."""
SHORT = "too little memory"
"""What drivers say of a process that the monitor has ended."""
NO_ROOM = "TensorBoard files cannot be written (No space left on device)"
"""And at their end, while its disk is full."""
IDLE = 3
"""Sweeps of each experiment in which the fault that is due finds nothing to hit, after which there is none."""
KILLED = -signal.SIGKILL


@dataclass
class Sweep:
    """An experiment that is being brought to its end."""

    command: Sequence[str]
    out: Path
    log_file: Path
    records: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """That were seen, and by what each is known again."""
    driver: subprocess.Popen[bytes] | None = None
    hit: bool = False
    """Whether it was we who killed the driver."""
    reports: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process that says what it says into the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def report(self) -> subprocess.Popen[bytes]:
        """`condkd report` on the experiment."""
        return self.start([sys.executable, "-m", "condkd_ray", "report", str(self.out)])

    @property
    def events(self) -> Path:
        """Where its TensorBoard files lie."""
        return self.out / FOLDER

    def end_driver(self) -> None:
        """Kill it."""
        assert self.driver is not None
        if self.driver.poll() is None:
            self.hit = True
            kill(self.driver.pid)
        self.driver.wait()


class Chaos:
    """Faults by `plan`, what is left of it, while experiments run; and what came of them."""

    def __init__(self, machine: Machine | None, plan: Sequence[tuple[Kind, float]], seed: int = 0):
        self._machine, self.plan = machine, list(plan)
        self._rng = random.Random(seed + 1)
        self._due = 0.0
        self._strikes: Mapping[Kind, Callable[[Sweep], bool]] = {
            "trial": self._kill_one("trial"),
            "pool": self._kill_one("pool"),
            "driver": self._kill_driver,
            "node": self._lose_node,
            "memory": self._crowd_memory,
            "report": self._report_beside,
            "disk": self._fill_disk,
            "journal": self._tear_journal,
        }
        self.struck, self.sweeps = Counter[Kind](), 0
        self.wrong: list[str] = []
        """In what sweeps differ from the calm one; a line each."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.struck.items()))
        good = "no finished trial lost, none run twice; records, tables, study and TensorBoard those of a calm run."
        return f"{self.struck.total()} faults ({kinds}), {self.sweeps} sweeps: {'; '.join(self.wrong) or good}"

    def soak(self, commands: Mapping[str, Sequence[str]], folder: Path) -> None:
        """Run each experiment `command --out ...` once undisturbed, then by turns until the plan is done.

        All is left under `folder`: the outputs, and in `log.txt` what the commands said. Raises `AssertionError` where
        a command fails or gets stuck, or a record that was there is lost or written again.
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
            found += [f"there is a trace in {log_file}"] * (told(log_file, "Traceback") > 0)
            log.info(f"{out.name}: {'; '.join(found) or 'as undisturbed'}")
            self.wrong += [f"{out.name}: {line}" for line in found]

    def sweep(self, command: Sequence[str], out: Path, log_file: Path) -> None:
        """Bring one experiment to its end, giving its command again after each kill of the driver."""
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
            if sweep.events.is_mount():  # as its own last words ask for
                small_disk.free(sweep.events)
                assert told(log_file, NO_ROOM), f"nobody has told of the full disk at {sweep.events}; see {log_file}"
                sweep.reports.append(sweep.report())
            codes = [report.wait(STALL_SECONDS) for report in sweep.reports]
            assert not any(codes), f"reports beside {out} ended with exit codes {codes}; see {log_file}"

    def _watch(self, sweep: Sweep, driver: subprocess.Popen[bytes]) -> int:
        """The exit code of its driver, once that has ended."""
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

    # Each strike says whether something of its kind was there to be hit.

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
        assert small is not None, "memory is taken on a small machine alone"
        before, until = told(sweep.log_file, SHORT), time.monotonic() + HOG_SECONDS
        if not named(TITLES["trial"], os.getpid()):
            return False
        with small.hog():
            while told(sweep.log_file, SHORT) == before:
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
        """From now on, until the driver ends: then it has told that it could not make them anew."""
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
    """What came of `plan` on a new cluster. `experiments`: their commands, as `Chaos.soak` takes them, for a folder."""
    open_folder(folder, "soak", fresh=folder.is_dir())
    with machine() as made:
        chaos = Chaos(made, plan, seed)
        given = experiments(folder).items()
        chaos.soak({name: [*command, "--address", made.address] for name, command in given}, folder)
    return chaos


def told(log_file: Path, words: str) -> int:
    """How often the words stand in the log."""
    return log_file.read_text(encoding="utf-8", errors="replace").count(words)


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
