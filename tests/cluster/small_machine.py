"""A machine with little memory, for one process and all that it starts: a control group, shown to it as that of all.

So it is in a container. What else runs here has no part in it, and is not hurt.
"""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
V1 = (GROUPS / "memory").is_dir()
ROOT = GROUPS / "memory" if V1 else GROUPS
LIMIT, USED = ("memory.limit_in_bytes", "memory.usage_in_bytes") if V1 else ("memory.max", "memory.current")
FILES = ("total_inactive_file", "total_active_file") if V1 else ("inactive_file", "active_file")
"""Of what is used the system's cache of files, which is given up where memory is short."""
ENTER = 'echo $$ > "$0/cgroup.procs" && mount --bind "$0" {root} && exec "$@"'
HOG = 1536 * 2**20
"""Most that a hog takes."""


class SmallMachine:
    """See `small_machine`. `within`: the command that starts another one there."""

    def __init__(self, group: Path, total: int) -> None:
        self.group, self.total = group, total
        enter = ENTER.format(root=ROOT)
        self.within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, str(group)]

    @property
    def used(self) -> int:
        """Bytes, as Ray's memory monitor counts them."""
        stat = dict(line.split() for line in (self.group / "memory.stat").read_text().splitlines())
        return int((self.group / USED).read_text()) - sum(int(stat[name]) for name in FILES)

    @contextmanager
    def hog(self, share: float) -> Iterator[None]:
        """Another program there, which takes memory until that share of the whole is used, again when some is freed."""
        command = [sys.executable, __file__, str(self.group), str(self.total), str(share)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                yield
            finally:
                process.kill()


@contextmanager
def small_machine(total: int) -> Iterator[SmallMachine]:
    """A machine with so many bytes, until the end of the block; skips the test where we may not make one."""
    import pytest  # which the hog need not wait for

    group = ROOT / f"condkd-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMIT).write_text(str(total))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if shutil.which("unshare") is None or subprocess.run([*SmallMachine(group, total).within, "true"]).returncode:
            pytest.skip("no permission to show a process a control group of its own")
        yield SmallMachine(group, total)
    finally:
        _remove(group)


def _remove(group: Path, seconds: float = 60.0) -> None:
    """Move what still runs in the group out of it, and delete it: processes that end stay in it for a while."""
    deadline = time.monotonic() + seconds
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (ROOT / "cgroup.procs").write_text(pid)
        try:
            group.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main(machine: SmallMachine, share: float) -> None:
    (machine.group / "cgroup.procs").write_text(str(os.getpid()))
    held = []
    while True:
        if machine.used < share * machine.total and len(held) * 2**24 < HOG:
            held.append(b"1" * 2**24)
        else:
            time.sleep(0.02)


if __name__ == "__main__":
    main(SmallMachine(Path(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]))
