"""A machine with little memory, for one process and its children: a control group that they see as the root group.

It resembles a container. Other programs on the real machine are not affected, and mounts inside it are visible only
there.
"""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from condkd_ray.core.method import InputError

GROUPS = Path("/sys/fs/cgroup")
V1 = (GROUPS / "memory").is_dir()
ROOT = GROUPS / "memory" if V1 else GROUPS
LIMIT, USED = ("memory.limit_in_bytes", "memory.usage_in_bytes") if V1 else ("memory.max", "memory.current")
FILES = ("total_inactive_file", "total_active_file") if V1 else ("inactive_file", "active_file")
"""Memory of the file cache, which is included in the used memory but freed when memory is short."""
ENTER = 'echo $$ > "$0/cgroup.procs" && mount --bind "$0" {root} && exec "$@"'
THRESHOLD = {"RAY_memory_usage_threshold": "0.75"}
"""Environment of a cluster on the small machine, so that Ray's monitor kills processes while a hog runs."""
HERE = "CHAOS_SMALL_MACHINE"
"""Environment variable of processes on the small machine: its size in bytes."""
CROWDED = 0.8
"""Share of the memory that a hog fills, above that threshold."""
MOST = 4 * 2**30
"""Largest number of bytes that a hog takes."""


class NotAllowed(Exception):
    """The process lacks the permission for a small machine or disk."""


class SmallMachine:
    """A small machine, made by `small_machine`. `within`: the command prefix that runs a command on it."""

    def __init__(self, group: Path, total: int) -> None:
        self.group, self.total = group, total
        enter = ENTER.format(root=ROOT)
        self.within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, str(group)]

    def run(self, command: Sequence[str]) -> int:
        """Run the command on the small machine, with Ray's threshold, and return its exit code."""
        return subprocess.run([*self.within, *command], env=os.environ | THRESHOLD | {HERE: str(self.total)}).returncode

    @property
    def used(self) -> int:
        """Used bytes, as Ray's memory monitor counts them."""
        stat = dict(line.split() for line in (self.group / "memory.stat").read_text(encoding="utf-8").splitlines())
        used = int((self.group / USED).read_text(encoding="utf-8"))
        return used - sum(int(stat[name]) for name in FILES)

    @contextmanager
    def hog(self, share: float = CROWDED, most: int = MOST) -> Iterator[None]:
        """Run a program on the small machine that fills memory up to that share, and fills it again when some is freed.

        It takes at most `most` bytes.
        """
        command = [sys.executable, __file__, str(self.group), str(self.total), str(share), str(most)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                yield
            finally:
                process.kill()


@contextmanager
def allowed(flag: str, kinds: Sequence[str]) -> Iterator[None]:
    """Turn `NotAllowed` inside the block into an `InputError` about the flag that selects kinds of faults."""
    try:
        yield
    except NotAllowed as error:
        accepted = "kinds without memory and disk, or a user with that permission"
        raise InputError(f"{flag} is {' '.join(kinds)}, but {error}; accepted: {accepted}") from None


def here() -> SmallMachine | None:
    """Return the small machine on which this process runs, or None if it runs on none."""
    return SmallMachine(ROOT, int(os.environ[HERE])) if HERE in os.environ else None


@contextmanager
def small_machine(total: int) -> Iterator[SmallMachine]:
    """Yield a machine with `total` bytes of memory. Raises `NotAllowed` without permission to make one."""
    group = ROOT / f"condkd-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMIT).write_text(str(total), encoding="utf-8")
    except OSError as error:
        raise NotAllowed(f"no control group can be created: {error}") from None
    try:
        if shutil.which("unshare") is None or subprocess.run([*SmallMachine(group, total).within, "true"]).returncode:
            raise NotAllowed("no permission to run a process in its own control group")
        yield SmallMachine(group, total)
    finally:
        _remove(group)


def _remove(group: Path, seconds: float = 60.0) -> None:
    """Move the group's remaining processes out of it, and delete it; ending processes stay in it for a while."""
    deadline = time.monotonic() + seconds
    while True:
        for pid in (group / "cgroup.procs").read_text(encoding="utf-8").split():
            with suppress(ProcessLookupError):
                (ROOT / "cgroup.procs").write_text(pid, encoding="utf-8")
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main(machine: SmallMachine, share: float, most: int) -> None:
    """Run a hog until it is killed."""
    (machine.group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
    held = []
    while True:
        if machine.used < share * machine.total and len(held) * 2**24 < most:
            held.append(b"1" * 2**24)
        else:
            time.sleep(0.02)


if __name__ == "__main__":
    main(SmallMachine(Path(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4]))
