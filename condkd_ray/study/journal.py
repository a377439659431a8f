"""Journal of a study: one JSON object per line, append-only, in the format of Optuna's journal storage.

A killed process or a full disk can leave an incomplete last line, or a lock file:

    study.journal         the journal
    study.journal.lock    exists while a process appends
    study.journal.torn    incomplete lines that were cut off, unchanged
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
"""Seconds after which an unchanged lock counts as left by a killed process (Optuna's value). An append takes
milliseconds."""
PATIENCE = 2.0
"""Seconds of waiting for a lock after which this is logged."""
BEGINNING = b'{"op_code":'
"""Start of each line, as Optuna writes it."""
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
"""Fields and their types by operation code (Optuna's `JournalOperation`), besides the worker's id. Optuna itself does
not check the fields that it reads."""


class Lock(BaseJournalFileLock):
    """A lock file beside the journal at `path`, compatible with both kinds of Optuna's locks.

    The lock is a plain file created with `O_EXCL`, which works on local disks and on NFS from version 3. Optuna's
    default lock is a symbolic link to the journal, and Optuna checks the age of the link's target. With a relative path
    the target does not exist, so Optuna waits forever for the lock of a killed process. Here the age of the lock file
    itself counts, whatever its kind.
    """

    def __init__(self, path: Path) -> None:
        self._journal, self._file = path, f"{path}.lock"
        self._own: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """Wait for the lock and take it; remove a lock that is unchanged for `GRACE` seconds.

        Raises `OSError` if the folder cannot be written.
        """
        began, seen, since, pause, noticed = time.monotonic(), self._standing(), time.monotonic(), 0.001, False
        while not self._made():
            now, standing = time.monotonic(), self._standing()
            if standing != seen:
                seen, since = standing, now
            if not noticed and now - began > PATIENCE:
                log.info(f"waiting for {self._file}; if a killed process left it, it is removed after {GRACE:.0f} s")
                noticed = True
            if standing is not None and now - since > GRACE:
                self._remove(standing)
                continue
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return True

    def release(self) -> None:
        """Release the lock, unless another process has removed it in the meantime."""
        if self._own is not None and self._standing() == self._own:
            Path(self._file).unlink(missing_ok=True)
        self._own = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock during the block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def exists(self) -> bool:
        """Return whether a process holds the lock or a killed process has left it."""
        return os.path.lexists(self._file)

    def _remove(self, standing: tuple[int, int]) -> None:
        """Remove a lock that was left behind, unless another waiting process has already replaced it."""
        with ExitStack() as stack:
            with suppress(OSError):  # no journal yet, or a file system without locks
                fcntl.flock(stack.enter_context(open(self._journal, "rb")), fcntl.LOCK_EX)
            if self._standing() == standing:
                log.info(f"{self._file} is removed: a killed process left it")
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
        """Return inode and modification time, which identify the present lock; None if there is none."""
        try:
            status = os.lstat(self._file)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class Journal(BaseJournalBackend):
    """The journal at `path`, created if missing, which tolerates an incomplete last line.

    Such a line is cut off when the journal is opened and before each append. No result relies on this line, because its
    append never returned. `durable`: each append is synced to disk; without it, lines may be lost if the machine fails,
    not if only the process is killed. Raises `InputError` if a line in the middle is damaged.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path, self._lock, self._durable = path, Lock(path), durable
        self._file = JournalFileBackend(str(path), lock_obj=self._lock)
        self._begun = _Begun()
        if self._lock.exists() or _is_torn(path):
            self._repair()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the lines from that number on, counted from 0. Raises `InputError` if one in the middle is damaged."""
        if log_number_from == 0:
            self._begun = _Begun()
        try:
            for number, entry in enumerate(self._file.read_logs(log_number_from), log_number_from):
                if not _is_operation(entry):
                    raise ValueError("not an operation")
                # References can be checked only if all earlier lines were read.
                if number == self._begun.lines and (unknown := self._begun.take(entry)):
                    raise self.damaged(f"it refers to {unknown}, which no earlier line creates")
                yield entry
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            # Only the last line may be incomplete here, if a read-only disk prevented its removal: stop before it.
            _check_middle(self._path, self._path.read_bytes())

    def damaged(self, why: str) -> InputError:
        """Return the error for damage to the line that was read last. `why`: the reason."""
        return _refusal(self._path, self._begun.lines, self._path.read_bytes().split(b"\n")[self._begun.lines - 1], why)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one line for each entry.

        Raises `OSError` if this is not possible, and `InputError` if the journal is damaged; nothing is appended then.
        """
        if _is_torn(self._path):
            self._repair()
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        with naming(self._path), self._lock.held():
            before = self._path.stat().st_size
            try:
                with open(self._path, "ab") as file:
                    file.write(lines)
                    file.flush()
                    if self._durable:
                        os.fsync(file.fileno())
            except OSError:
                # Remove the bytes that were written before the disk was full.
                with suppress(OSError):
                    os.truncate(self._path, before)
                raise

    def _repair(self) -> None:
        """Move an incomplete last line to the `.torn` file; do nothing if the folder is read-only."""
        if not os.access(self._path, os.W_OK) or not os.access(self._path.parent, os.W_OK):
            return
        with self._lock.held():
            if not _is_torn(self._path):
                return
            content = self._path.read_bytes()
            _check_middle(self._path, content)
            length = _valid_bytes(content)
            aside = self._path.with_name(f"{self._path.name}.torn")
            with naming(aside), open(aside, "ab") as file:
                file.write(content[length:] + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.truncate(self._path, length)
        log.info(
            f"the last line of {self._path} is incomplete (a killed process, a full disk, a power loss): it was moved "
            f"to {aside.name}, and the missing entries are taken from the records"
        )


def stored(path: Path, *, durable: bool = True) -> JournalStorage:
    """Open the storage with the journal at `path`; `durable`: as in `Journal`.

    Raises `InputError` if a line is damaged, and `OSError` if the file cannot be read or created.
    """
    journal = Journal(path, durable=durable)
    try:
        return JournalStorage(journal)
    except (InputError, OSError):
        raise
    except Exception as error:  # Optuna raises errors of many types for damaged lines
        raise journal.damaged(f"{type(error).__name__}: {error}") from None


class _Begun:
    """Numbers of the studies and trials that the lines so far have created, counted as Optuna does."""

    def __init__(self) -> None:
        self.lines = self._trials = self._studies = 0
        self._names: dict[int, str] = {}

    def take(self, entry: dict[str, Any]) -> str:
        """Count a line; return the study or trial that it refers to but that does not exist, or an empty string."""
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
    """Return whether the entry has the fields of its operation code."""
    if (
        not isinstance(entry, dict)
        or type(entry.get("op_code")) is not int
        or not isinstance(entry.get("worker_id"), str)
    ):
        return False
    fields = OPERATIONS.get(entry["op_code"])
    return fields is not None and all(name in entry and type(entry[name]) in kinds for name, kinds in fields.items())


def _is_torn(path: Path) -> bool:
    """Return whether the last line is incomplete; the other lines are not read."""
    with open(path, "rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail[:-1]:
            end = max(0, size - 2 * len(tail) - 2**12)
            file.seek(end)
            tail = file.read(size - end)
    return bool(tail) and not (tail.endswith(b"\n") and _is_valid(tail[:-1].rpartition(b"\n")[2]))


def _is_valid(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return _is_operation(entry)


def _valid_bytes(content: bytes) -> int:
    """Return the total length of the undamaged lines before the first damaged one, in bytes."""
    length = 0
    for line in content.split(b"\n")[:-1]:
        if not _is_valid(line):
            break
        length += len(line) + 1
    return length


def _check_middle(path: Path, content: bytes) -> None:
    """Raise `InputError` if an undamaged line follows a damaged one, or if the file is not a journal."""
    length = _valid_bytes(content)
    damaged, *others = content[length:].split(b"\n")
    # A power loss leaves zeros in place of bytes that were not written yet.
    begun = BEGINNING.startswith(damaged.rstrip(b"\0")[: len(BEGINNING)])
    never = length == 0 and (not begun or any(other.strip(b"\0") for other in others))
    if not (never or any(map(_is_valid, others))):
        return
    if never:
        raise InputError(
            f"line 1 of {path} is {_beginning(damaged)}, which is damaged; accepted: the journal of a study"
        )
    raise _refusal(path, content.count(b"\n", 0, length) + 1, damaged)


def _refusal(path: Path, number: int, line: bytes, why: str = "") -> InputError:
    """Return the error for a damaged line that is not the last, or for a line that contradicts others.

    Such a line is not repaired: its message gives the user the choice.
    """
    fault = f"line {number} of {path} is {_beginning(line)}, which is damaged{f' ({why})' if why else ''}"
    remedy = f"cut before that line (head -n {number - 1}) or moved away: missing entries are taken from the records"
    return InputError(f"{fault}; accepted: the journal of a study, {remedy}")


def _beginning(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace"))
