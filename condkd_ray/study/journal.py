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

from optuna.storages import JournalStorage
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
NUMBER, NONE = (int, float), type(None)
STUDY, TRIAL = {"study_id": (int,)}, {"trial_id": (int,)}
OPERATIONS: dict[int, dict[str, tuple[type, ...]]] = {
    0: {"study_name": (str,), "directions": (list,)},
    1: STUDY,
    2: STUDY | {"user_attr": (dict,)},
    3: STUDY | {"system_attr": (dict,)},
    4: STUDY | {"datetime_start": (str, NONE)},
    5: TRIAL | {"param_name": (str,), "param_value_internal": NUMBER, "distribution": (str,)},
    6: TRIAL | {"state": (int,), "values": (list, NONE)},
    7: TRIAL | {"step": (int,), "intermediate_value": NUMBER},
    8: TRIAL | {"user_attr": (dict,)},
    9: TRIAL | {"system_attr": (dict,)},
    10: {},
}
"""What lines of each code have, beside who wrote them: `JournalOperation` of Optuna, which believes what it reads."""


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
        self._begun = _Begun()
        if self._lock.stands() or _is_torn(path):
            self._mend()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from that one on, counted from 0. Raises `InputError` where one in the middle is damaged."""
        if log_number_from == 0:
            self._begun = _Begun()
        try:
            for number, entry in enumerate(self._file.read_logs(log_number_from), log_number_from):
                if not _is_operation(entry):
                    raise ValueError("no operation")
                # Who begins in the middle does not know what has begun.
                if number == self._begun.lines and (unknown := self._begun.take(entry)):
                    raise self.damaged(f"it speaks of {unknown}, which no line before begins")
                yield entry
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            # Where only the end is damaged, and cannot be mended, as on a disk that is not to be written: up to there.
            _check_middle(self._path, self._path.read_bytes())

    def damaged(self, why: str) -> InputError:
        """That the line which was read last cannot be what was written."""
        return _refusal(self._path, self._begun.lines, self._path.read_bytes().split(b"\n")[self._begun.lines - 1], why)

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


def stored(path: Path) -> JournalStorage:
    """The storage whose journal lies at `path`. Raises `InputError` where its lines are damaged, `OSError`."""
    journal = Journal(path)
    try:
        return JournalStorage(journal)
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever a line makes Optuna raise is the line's fault
        raise journal.damaged(f"{type(error).__name__}: {error}") from None


class _Begun:
    """What the lines so far have begun, counted as Optuna does."""

    def __init__(self) -> None:
        self.lines = self._trials = self._studies = 0
        self._names: dict[int, str] = {}

    def take(self, entry: dict[str, Any]) -> str:
        """Count a line. What it speaks of that there is not, or nothing."""
        self.lines += 1
        study, trial = entry.get("study_id"), entry.get("trial_id")
        if study is not None and not 0 <= study < self._studies:
            return f"study {study}"
        if trial is not None and not 0 <= trial < self._trials:
            return f"trial {trial}"
        if entry["op_code"] == 0 and entry["study_name"] not in self._names.values():
            self._names[self._studies] = entry["study_name"]
            self._studies += 1
        elif entry["op_code"] == 1:
            self._names.pop(entry["study_id"], None)
        elif entry["op_code"] == 4:
            self._trials += study in self._names
        return ""


def _is_operation(entry: Any) -> bool:
    """Whether it has what a line of its code has."""
    if (
        not isinstance(entry, dict)
        or type(entry.get("op_code")) is not int
        or not isinstance(entry.get("worker_id"), str)
    ):
        return False
    fields = OPERATIONS.get(entry["op_code"])
    return fields is not None and all(name in entry and type(entry[name]) in kinds for name, kinds in fields.items())


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
    return _is_operation(entry)


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
    # A power loss leaves zeros where nothing was written as yet.
    begun = BEGINNING.startswith(damaged.rstrip(b"\0")[: len(BEGINNING)])
    never = length == 0 and (not begun or any(other.strip(b"\0") for other in others))
    if not (never or any(map(_sound, others))):
        return
    if never:
        raise InputError(
            f"line 1 of {path} is {_beginning(damaged)}, which is damaged; accepted: the journal of a study"
        )
    raise _refusal(path, content.count(b"\n", 0, length) + 1, damaged)


def _refusal(path: Path, number: int, line: bytes, why: str = "") -> InputError:
    """Of a line that others follow, or that contradicts others: it is for the user to decide what to give up."""
    told = f"line {number} of {path} is {_beginning(line)}, which is damaged{f' ({why})' if why else ''}"
    remedy = f"cut before that line (head -n {number - 1}) or moved away: what it lacks is taken from the records"
    return InputError(f"{told}; accepted: the journal of a study, {remedy}")


def _beginning(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace"))
