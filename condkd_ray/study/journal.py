"""The journal of a study: a file of one JSON object a line, only ever appended to, as Optuna's storage reads it.

A process that is killed, or a disk that is full, can leave a part of a line at its end, or the lock of the file:

    study.journal         the journal
    study.journal.lock    there while a process appends
    study.journal.torn    ends that were cut off, as they were
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from condkd_ray.core.method import InputError
from condkd_ray.core.storage import naming

log = logging.getLogger(__name__)

GRACE = 30.0
"""Seconds after which an unchanged lock is taken for that of a process that was killed. Optuna's; an append takes
milliseconds."""
PATIENCE = 2.0
"""Seconds of waiting after which it is told of."""
BEGINNING = b'{"op_code":'
"""Of a line, as Optuna writes it."""


class Lock(BaseJournalFileLock):
    """A lock file beside the journal at `path`. It and Optuna's own two kinds of locks keep each other out.

    A plain file, made with `O_EXCL`, which local disks and NFS from version 3 on honour. Optuna's default is a symbolic
    link to the journal, and it looks at what that leads to: under a relative path to nothing, so that it waits for
    ever for one that a killed process has left. Here the file itself is looked at, of whichever kind it is.
    """

    def __init__(self, path: Path) -> None:
        self._journal, self._file = path, f"{path}.lock"
        self._own: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, and take it; one that has not changed for `GRACE` seconds is removed. Raises `OSError`."""
        began, seen, since, pause, told = time.monotonic(), self._standing(), time.monotonic(), 0.001, False
        while not self._made():
            now, standing = time.monotonic(), self._standing()
            if standing != seen:
                seen, since = standing, now
            if not told and now - began > PATIENCE:
                log.info(f"waiting for {self._file}: if a killed process has left it, it goes in {GRACE:.0f} s")
                told = True
            if standing is not None and now - since > GRACE:
                self._remove(standing)
                continue
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return True

    def release(self) -> None:
        """Give it back; nothing where another process has taken it for left over meanwhile."""
        if self._own is not None and self._standing() == self._own:
            Path(self._file).unlink(missing_ok=True)
        self._own = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the length of the block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def stands(self) -> bool:
        """Whether anybody holds it, or has left it."""
        return os.path.lexists(self._file)

    def _remove(self, standing: tuple[int, int]) -> None:
        """Remove the lock that was left, unless who waits beside us has done so and taken it."""
        with ExitStack() as stack:
            with suppress(OSError):  # no journal as yet, or a file system without locks
                fcntl.flock(stack.enter_context(open(self._journal, "rb")), fcntl.LOCK_EX)
            if self._standing() == standing:
                log.info(f"{self._file} is removed: a process that was killed has left it")
                Path(self._file).unlink(missing_ok=True)

    def _made(self) -> bool:
        try:
            descriptor = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        status = os.fstat(descriptor)
        os.close(descriptor)
        self._own = status.st_ino, status.st_mtime_ns
        return True

    def _standing(self) -> tuple[int, int] | None:
        """What tells the lock that stands from the next one; None where there is none."""
        try:
            status = os.lstat(self._file)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class Journal(BaseJournalBackend):
    """The journal at `path`, a new one where there is none; it survives whatever has happened to its end.

    Opened, and before each append, it is freed of a line that was written in part. What that said has not been acted
    upon: it was never known to be on the disk. Raises `InputError` where a line in its middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock(path)
        self._file = JournalFileBackend(str(path), lock_obj=self._lock)
        if self._lock.stands() or _is_torn(path):
            self._mend()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from that one on, counted from 0. Raises `InputError` where one in the middle is damaged."""
        try:
            for entry in self._file.read_logs(log_number_from):
                if not (isinstance(entry, dict) and "op_code" in entry):
                    raise ValueError("no operation")
                yield entry
        except ValueError:
            # Where only the end is damaged, and cannot be mended, as on a disk that is not to be written: up to there.
            _check_middle(self._path, self._path.read_bytes())

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append a line for each, on the disk when it returns. Where that fails nothing is appended: `OSError`."""
        if _is_torn(self._path):
            self._mend()
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        with naming(self._path), self._lock.held():
            before = self._path.stat().st_size
            try:
                with open(self._path, "ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                # What a full disk has taken of it.
                with suppress(OSError):
                    os.truncate(self._path, before)
                raise

    def _mend(self) -> None:
        """Move a torn end into a file beside. Nothing where it cannot be written, as readers need not."""
        if not os.access(self._path, os.W_OK) or not os.access(self._path.parent, os.W_OK):
            return
        with self._lock.held():
            if not _is_torn(self._path):
                return
            content = self._path.read_bytes()
            _check_middle(self._path, content)
            length = _sound_bytes(content)
            aside = self._path.with_name(f"{self._path.name}.torn")
            with naming(aside), open(aside, "ab") as file:
                file.write(content[length:] + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.truncate(self._path, length)
        log.info(
            f"the last line of {self._path} was written in part (a killed process, a full disk, a power loss): it is "
            f"now in {aside.name}, and what is missing is taken from the records"
        )


def _is_torn(path: Path) -> bool:
    """Whether the last line is not whole; the others are not looked at."""
    with open(path, "rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail[:-1]:
            end = max(0, size - 2 * len(tail) - 2**12)
            file.seek(end)
            tail = file.read(size - end)
    return bool(tail) and not (tail.endswith(b"\n") and _sound(tail[:-1].rpartition(b"\n")[2]))


def _sound(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and "op_code" in entry


def _sound_bytes(content: bytes) -> int:
    """How many bytes whole lines take, up to the first that is damaged."""
    length = 0
    for line in content.split(b"\n")[:-1]:
        if not _sound(line):
            break
        length += len(line) + 1
    return length


def _check_middle(path: Path, content: bytes) -> None:
    """Raise `InputError` where a whole line follows a damaged one, or where this never was a journal."""
    length = _sound_bytes(content)
    damaged, *others = content[length:].split(b"\n")
    begun = BEGINNING.startswith(damaged[: len(BEGINNING)]) or not damaged.strip(b"\0")
    never = length == 0 and (not begun or any(other.strip(b"\0") for other in others))
    if not (never or any(map(_sound, others))):
        return
    number = content.count(b"\n", 0, length) + 1
    told = f"line {number} of {path} is {damaged[:40].decode(errors='replace')!r}"
    accepted = "the journal of a study"
    if not never:
        accepted += (
            f", cut before that line (head -n {number - 1}) or moved away: what it lacks is taken from the records"
        )
    raise InputError(f"{told}, which is damaged; accepted: {accepted}")
