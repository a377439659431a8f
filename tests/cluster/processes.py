"""Processes and sockets of a cluster on this machine, read from /proc."""

import ctypes
import os
from pathlib import Path

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net/tcp and /proc/net/tcp6 write it."""


def descendants(ancestor: int) -> dict[int, str]:
    """Command lines of all processes below `ancestor`, by pid."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The command's name, in brackets, may hold anything; the parent is the second field behind it.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    below, frontier = {}, {ancestor}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        below |= {pid: _command(pid) for pid in frontier}
    return below


def of_ray(name: str) -> list[int]:
    """Pids of this process's Ray workers whose title begins with "ray::`name`"."""
    return [pid for pid, command in descendants(os.getpid()).items() if command.startswith(f"ray::{name}")]


def listening(pids: set[int]) -> set[str]:
    """Local IP addresses, as /proc/net/tcp writes them, on which these processes listen."""
    inodes = set()
    for pid in pids:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except (FileNotFoundError, PermissionError):
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def private_bytes() -> int:
    """Return the bytes that this process shares with no other, without freed memory that the allocator still holds."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
