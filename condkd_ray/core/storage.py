"""Atomic files in a local folder or in an object store such as `s3://bucket/prefix`.

A `Location` is a `Path` or a `Remote`, which has the few methods of `Path` that are needed; the functions here accept
both. A local file is replaced by renaming, an object by a single put, so a reader never finds half a file. Remote
content passes through a temporary local file and is never held in memory as a whole. Errors of full storage name the
file and can be distinguished from all other errors: see `no_room`.
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
"""URI schemes of `pyarrow.fs` with atomic puts. Only S3 is covered by tests."""
PIECE = 16 * 2**20
"""Bytes read by one request."""
ACCEPTED = "a folder, or the URI of one in an object store: s3://bucket/prefix, gs://bucket/prefix, abfs://..."

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a full device, an exhausted quota, and a limit on file size."""


class StorageFullError(Exception):
    """Storage is full; the message names the place and the system's reason."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise system errors of the block, in which `path` is written, as an `OSError` that names `path`."""
    try:
        yield
    except SafetensorError as error:
        # It carries the system's error only in its text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def no_room(error: BaseException) -> str | None:
    """Return path and reason in one line if full storage caused `error`, directly or through its causes; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageFullError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{os.strerror(cause.errno)}"
        # Ray keeps an actor's original exception in an attribute.
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    return None


@dataclass(frozen=True)
class Remote:
    """A file or folder of an object store. It can be pickled: each process opens the store when it first needs it."""

    root: str
    """URI of a folder, with any options that `pyarrow.fs.FileSystem.from_uri` accepts after a question mark."""
    below: str = ""
    """Path relative to `root`, without leading or trailing slash."""

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.root, f"{self.below}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.root.partition('?')[0].rstrip('/')}/{self.below}".rstrip("/")

    @property
    def name(self) -> str:
        """Last component of the path."""
        return PurePosixPath(self.below).name

    @property
    def stem(self) -> str:
        """Last component of the path without its suffix."""
        return PurePosixPath(self.below).stem

    def is_file(self) -> bool:
        """Return True if the file exists. Raises `OSError` if the store cannot be reached."""
        return self.filesystem.get_file_info(self.path).is_file

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file. Raises `FileNotFoundError` if it does not exist, unless `missing_ok`."""
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self.filesystem.delete_file(self.path)

    @property
    def filesystem(self) -> FileSystem:
        """The store as a pyarrow file system, opened once per process."""
        return _opened(self.root)[0]

    @property
    def path(self) -> str:
        """Path within the store, beginning with the bucket."""
        return f"{_opened(self.root)[1]}/{self.below}".rstrip("/")


Location = Path | Remote
"""A local or remote file or folder."""


@cache
def _opened(root: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem

    parts = urlsplit(root)
    if parts.scheme == "s3" and "allow_delayed_open=" not in parts.query:
        # One request for a small file instead of three.
        root = urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, "allow_delayed_open=true"]))))
    return FileSystem.from_uri(root)


def locate(text: str, what: str = "--storage") -> Location:
    """Return the location that `text` names: a path, a `file://` URI, or the URI of a folder in an object store.

    No store is contacted. Raises `InputError` for an unknown scheme, a missing bucket, or secrets in the URI.
    """
    if "://" not in text:
        # Not resolved: a symbolic link may lead elsewhere on each node.
        return Path(text).absolute()
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc:
        return Path(_opened(text)[1])
    require(parts.scheme in OBJECT_STORES, what, text, ACCEPTED)
    # URIs are printed and written into records.
    secret = parts.password is not None or (parts.scheme == "s3" and "@" in parts.netloc)
    require(not secret, what, f"{parts.scheme}://...", "a URI without secrets; keys of S3 come from AWS_ACCESS_KEY_ID")
    require(bool(parts.netloc), what, text, ACCEPTED)
    return Remote(text)


def check_writable(folder: Location, what: str = "--storage") -> None:
    """Raise `InputError` if `folder` cannot be reached, such as a missing bucket, or cannot be written."""
    try:
        probe(folder)
    except (OSError, ValueError) as error:
        accepted = f"{ACCEPTED}; it must be writable ({reason(error)})"
        raise InputError(f"{what} is {str(folder)!r}; accepted: {accepted}") from None


def probe(folder: Location) -> None:
    """Write, read and delete a small file in `folder`. Raises the `OSError` or `ValueError` of whatever fails."""
    file, word = folder / f".probe-{secrets.token_hex(8)}", secrets.token_hex(8)
    put_text(file, word)
    try:
        found = get_text(file)
    finally:
        file.unlink()
    if found != word:
        raise OSError("a file read back differs from what was written")


def reason(error: Exception) -> str:
    """Return the cause of a storage error in one line, without S3's request id."""
    text = getattr(error, "strerror", None) or str(error)
    return first_line(error, text.partition(" (Request ID")[0])


def atomic_write(path: Path, content: bytes) -> None:
    """Write a local file durably: a reader finds the old content or the new one, even after a crash."""
    with writing(path, durable=True) as partial:
        partial.write_bytes(content)
        # Results are shared, so the user's umask does not apply.
        partial.chmod(0o644)


def put_text(file: Location, text: str) -> None:
    """Write a small file atomically and durably."""
    with writing(file, durable=True) as partial:
        partial.write_text(text, encoding="utf-8")


def get_text(file: Location) -> str:
    """Return the content of a small file. Raises `FileNotFoundError` if it does not exist."""
    with reading(file) as local:
        return local.read_text(encoding="utf-8")


@contextmanager
def writing(file: Location, *, durable: bool = False) -> Iterator[Path]:
    """Yield a local path to write to; at the end of the block its content atomically replaces `file`.

    `durable`: sync file and folder to disk first. If the block raises, `file` stays unchanged.
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
    """Sync a folder's entries to disk; does nothing on file systems that do not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def reading(file: Location) -> Iterator[Path]:
    """Yield a local path with the content of `file`, valid during the block; a memory map of it stays valid."""
    if isinstance(file, Remote):
        with TemporaryDirectory(prefix="condkd-") as folder:
            local = Path(folder) / file.name
            with file.filesystem.open_input_file(file.path) as stream, open(local, "wb") as copy:
                shutil.copyfileobj(stream, copy, PIECE)
            yield local
    else:
        yield file


def files(folder: Location) -> list[Location]:
    """Return the files directly in `folder`; an empty list if it does not exist."""
    if isinstance(folder, Path):
        return [path for path in folder.glob("*") if path.is_file()]
    from pyarrow.fs import FileSelector

    found = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [folder / info.base_name for info in found if info.is_file]


def remove(folder: Location) -> None:
    """Delete `folder` and its content. Errors are ignored: leftover files do no harm."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            folder.filesystem.delete_dir(folder.path)


def take(source: Location, target: Path) -> None:
    """Move a file to a local path atomically; across file systems, and from a store, it is copied first."""
    if isinstance(source, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            source.replace(target)
            return
    with reading(source) as local, writing(target) as partial:
        shutil.copyfile(local, partial)
    source.unlink()


def move(source: Location, target: Location) -> None:
    """Rename a file within its folder or store. Raises `FileNotFoundError` if it does not exist."""
    if isinstance(source, Path):
        source.replace(str(target))
    else:
        assert isinstance(target, Remote)
        try:
            source.filesystem.move(source.path, target.path)
        except OSError as error:
            if source.is_file():
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source)) from error


def _put(source: Path, target: Remote) -> None:
    from pyarrow import memory_map

    with memory_map(str(source)) as mapped:
        whole = mapped.read_buffer()
    # All content goes in one call: a stream that fails halfway is closed, and closing puts what was written so far.
    # `copy_files` is no alternative: it ignores errors on close, and S3 creates the object on close.
    stream = target.filesystem.open_output_stream(target.path)
    stream.write(whole)
    stream.close()
