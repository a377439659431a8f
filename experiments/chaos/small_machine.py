"""A machine with little memory, for one process and all that it starts: a control group, shown to it as that of all.

So it is in a container. What else runs here has no part in it, and is not hurt. What is mounted there is seen there
alone.
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
"""Of what is used the system's cache of files, which is given up where memory is short."""
ENTER = 'echo $$ > "$0/cgroup.procs" && mount --bind "$0" {root} && exec "$@"'
THRESHOLD = {"RAY_memory_usage_threshold": "0.75"}
"""For the environment of a cluster there whose monitor shall end processes where a hog is."""
HERE = "CHAOS_SMALL_MACHINE"
"""In the environment of what runs there: its bytes."""
CROWDED = 0.8
"""The share of the memory that a hog brings to use, so that it is above that threshold."""
MOST = 4 * 2**30
"""Bytes that it takes at the most."""


class NotAllowed(Exception):
    """We have no permission to make what was asked for here."""


class SmallMachine:
    """See `small_machine`. `within`: the command that starts another one there."""

    def __init__(self, group: Path, total: int) -> None:
        self.group, self.total = group, total
        enter = ENTER.format(root=ROOT)
        self.within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, str(group)]

    def run(self, command: Sequence[str]) -> int:
        """Run the command there, with Ray's threshold: its exit code."""
        return subprocess.run([*self.within, *command], env=os.environ | THRESHOLD | {HERE: str(self.total)}).returncode

    @property
    def used(self) -> int:
        """Bytes, as Ray's memory monitor counts them."""
        stat = dict(line.split() for line in (self.group / "memory.stat").read_text(encoding="utf-8").splitlines())
        used = int((self.group / USED).read_text(encoding="utf-8"))
        return used - sum(int(stat[name]) for name in FILES)

    @contextmanager
    def hog(self, share: float = CROWDED, most: int = MOST) -> Iterator[None]:
        """Another program there, which takes memory until that share of the whole is used, again when some is freed.

        It takes `most` bytes at the most.
        """
        command = [sys.executable, __file__, str(self.group), str(self.total), str(share), str(most)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                yield
            finally:
                process.kill()


@contextmanager
def allowed(flag: str, kinds: Sequence[str]) -> Iterator[None]:
    """A block that may raise `NotAllowed`, which becomes an `InputError` on the kinds of faults that a flag names."""
    try:
        yield
    except NotAllowed as error:
        accepted = "kinds without memory and disk, or the permission for it"
        raise InputError(f"{flag} is {' '.join(kinds)}, but {error}; accepted: {accepted}") from None


def here() -> SmallMachine | None:
    """The small machine in which `SmallMachine.run` has started this process, or one above it; None in others."""
    return SmallMachine(ROOT, int(os.environ[HERE])) if HERE in os.environ else None


@contextmanager
def small_machine(total: int) -> Iterator[SmallMachine]:
    """A machine with so many bytes, until the end of the block. Raises `NotAllowed` where we may not make one."""
    group = ROOT / f"condkd-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMIT).write_text(str(total), encoding="utf-8")
    except OSError as error:
        raise NotAllowed(f"no control group can be made here: {error}") from None
    try:
        if shutil.which("unshare") is None or subprocess.run([*SmallMachine(group, total).within, "true"]).returncode:
            raise NotAllowed("no permission to show a process a control group of its own")
        yield SmallMachine(group, total)
    finally:
        _remove(group)


def _remove(group: Path, seconds: float = 60.0) -> None:
    """Move what still runs in the group out of it, and delete it: processes that end stay in it for a while."""
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
    """A hog, for ever."""
    (machine.group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
    held = []
    while True:
        if machine.used < share * machine.total and len(held) * 2**24 < most:
            held.append(b"1" * 2**24)
        else:
            time.sleep(0.02)


if __name__ == "__main__":
    main(SmallMachine(Path(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4]))
