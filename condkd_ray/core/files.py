"""Files written whole or not at all; storage that is full: an error that names the file, told from all others."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""A full device, a used-up quota, a limit on the size of files."""


class StorageFullError(Exception):
    """Nothing more can be written; the message says where, and what the system said."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written is an `OSError` that names it."""
    try:
        yield
    except SafetensorError as error:
        # It gives the system's error in words only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def no_room(error: BaseException) -> str | None:
    """Path and reason in one line, if `error` or what it was raised from came of full storage; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageFullError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{os.strerror(cause.errno)}"
        # An actor's error has what was raised there as an attribute.
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    return None


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside `path` to be written to; as the block ends it takes the place of `path`, atomically.

    With `durable` it is on the disk by then. Where the block raises, `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with naming(path):
            yield partial
            if durable:
                with open(partial, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, also one after a crash, sees the old file or the new one, never a part."""
    with whole(path, durable=True) as partial:
        partial.write_bytes(content)
        # Results are meant to be shared, whatever the user's mask.
        partial.chmod(0o644)
