"""Files written whole or not at all, in a folder or behind a URI of an object store such as `s3://bucket/prefix`.

A `Location` is a `Path` or a `Remote`, which has the few verbs of `Path` that are needed; the functions here serve
both alike. In a folder a file is replaced whole by renaming, in an object store by putting it: readers never see half
of one. What is read from there or written goes through a temporary file of this machine, never whole through memory.
Storage that is full gives an error that names the file, told from all others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from safetensors import SafetensorError

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError, require

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
"""Schemes of `pyarrow.fs` under which an object is put whole or not at all. We have run S3 alone."""
PIECE = 16 * 2**20
"""Bytes fetched by one request."""
ACCEPTED = "a folder, or the URI of one in an object store: s3://bucket/prefix, gs://bucket/prefix, abfs://..."

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


@dataclass(frozen=True)
class Remote:
    """A file or folder of an object store. It can be pickled: each process opens the store for itself, when needed."""

    root: str
    """URI of a folder, with all that `pyarrow.fs.FileSystem.from_uri` accepts behind a question mark."""
    below: str = ""
    """Path from there, without a slash at its ends."""

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.root, f"{self.below}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.root.partition('?')[0].rstrip('/')}/{self.below}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.below).name

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return PurePosixPath(self.below).stem

    def is_file(self) -> bool:
        """Whether there is such a file. Raises `OSError` where the store cannot be asked."""
        return self.filesystem.get_file_info(self.path).is_file

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file. Raises `FileNotFoundError` where there is none, unless that is `missing_ok`."""
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self.filesystem.delete_file(self.path)

    @property
    def filesystem(self) -> FileSystem:
        """The store, as pyarrow opens it."""
        return _opened(self.root)[0]

    @property
    def path(self) -> str:
        """Its path in the store: begins with the bucket."""
        return f"{_opened(self.root)[1]}/{self.below}".rstrip("/")


Location = Path | Remote
"""A file or folder, here or in an object store."""


@cache
def _opened(root: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem

    parts = urlsplit(root)
    if parts.scheme == "s3" and "allow_delayed_open=" not in parts.query:
        # One request for a small file instead of three.
        root = urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, "allow_delayed_open=true"]))))
    return FileSystem.from_uri(root)


def locate(text: str, what: str = "--storage") -> Location:
    """What `text` names: a path, `file://` too, or the URI of a folder in an object store. No store is asked yet.

    Raises `InputError` for an unknown scheme, no bucket, or secrets in the URI.
    """
    if "://" not in text:
        # Not resolved: where a link leads is each node's own affair.
        return Path(text).absolute()
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc:
        return Path(_opened(text)[1])
    require(parts.scheme in OBJECT_STORES, what, text, ACCEPTED)
    # A URI is shown, and written into records.
    secret = parts.password is not None or (parts.scheme == "s3" and "@" in parts.netloc)
    require(not secret, what, f"{parts.scheme}://...", "a URI without secrets; keys of S3 come from AWS_ACCESS_KEY_ID")
    require(bool(parts.netloc), what, text, ACCEPTED)
    return Remote(text)


def check_writable(folder: Location, what: str = "--storage") -> None:
    """Raise `InputError` where `folder` is not to be had, such as a bucket that is not there, or not to be written."""
    try:
        probe(folder)
    except (OSError, ValueError) as error:
        accepted = f"{ACCEPTED}, that can be written ({reason(error)})"
        raise InputError(f"{what} is {str(folder)!r}; accepted: {accepted}") from None


def probe(folder: Location) -> None:
    """Write a file to `folder`, read it and delete it. Raises what goes wrong: `OSError`, `ValueError`."""
    file, word = folder / f".probe-{secrets.token_hex(8)}", secrets.token_hex(8)
    put_text(file, word)
    try:
        found = get_text(file)
    finally:
        file.unlink()
    if found != word:
        raise OSError("it gives back another file than was written")


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return first_line(error, text.partition(" (Request ID")[0])


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, also one after a crash, sees the old file or the new one, never a part."""
    with writing(path, durable=True) as partial:
        partial.write_bytes(content)
        # Results are meant to be shared, whatever the user's mask.
        partial.chmod(0o644)


def put_text(file: Location, text: str) -> None:
    """Write a small file, atomically; it is on the disk then."""
    with writing(file, durable=True) as partial:
        partial.write_text(text, encoding="utf-8")


def get_text(file: Location) -> str:
    """The content of a small file."""
    with reading(file) as local:
        return local.read_text(encoding="utf-8")


@contextmanager
def writing(file: Location, *, durable: bool = False) -> Iterator[Path]:
    """A path on this machine to be written to; as the block ends it becomes `file`, atomically and in place of any.

    With `durable` it is on the disk by then. Where the block raises, `file` stays as it was.
    """
    if isinstance(file, Remote):
        with TemporaryDirectory(prefix="condkd-") as folder:
            partial = Path(folder) / file.name
            with naming(partial):
                yield partial
            _put(partial, file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with naming(file):
            yield partial
            if durable:
                with open(partial, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(partial, file)
            if durable:
                _sync_folder(file.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have the names in it on the disk; nothing on file systems that do not know how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def reading(file: Location) -> Iterator[Path]:
    """A path on this machine with the content of `file`, for the length of the block; a map of it may live longer."""
    if isinstance(file, Remote):
        with TemporaryDirectory(prefix="condkd-") as folder:
            local = Path(folder) / file.name
            with file.filesystem.open_input_file(file.path) as stream, open(local, "wb") as copy:
                shutil.copyfileobj(stream, copy, PIECE)
            yield local
    else:
        yield file


def files(folder: Location) -> list[Location]:
    """The files right in `folder`; none where there is no such folder."""
    if isinstance(folder, Path):
        return [path for path in folder.glob("*") if path.is_file()]
    from pyarrow.fs import FileSelector

    found = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [folder / info.base_name for info in found if info.is_file]


def remove(folder: Location) -> None:
    """Delete `folder` with all that is in it, as far as that can be done: what stays does no harm."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            folder.filesystem.delete_dir(folder.path)


def take(source: Location, target: Path) -> None:
    """Move a file to a path of this machine, atomically; copied first where the two lie apart."""
    if isinstance(source, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            source.replace(target)
            return
    with reading(source) as local, writing(target) as partial:
        shutil.copyfile(local, partial)
    source.unlink()


def _put(source: Path, target: Remote) -> None:
    from pyarrow import memory_map

    with memory_map(str(source)) as mapped:
        whole = mapped.read_buffer()
    # A stream left after half of the content would be closed, and so put as a whole: it gets all of it in one call.
    # Not `copy_files`: that passes over what goes wrong as it closes the file, which is when an object comes to be.
    stream = target.filesystem.open_output_stream(target.path)
    stream.write(whole)
    stream.close()
