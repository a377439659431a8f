"""A folder with little space: a file system in memory, mounted over the folder's own content."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos.small_machine import NotAllowed


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount an empty file system of a size such as 16k or 8m over `folder`, until the block ends or `free` is called.

    Raises `NotAllowed` without permission to mount.
    """
    mount(folder, size)
    try:
        yield folder
    finally:
        free(folder)


def mount(folder: Path, size: str) -> None:
    """Mount an empty file system of this size over `folder`. Raises `NotAllowed` without permission."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        raise NotAllowed("no permission to mount a small file system")


def fill(folder: Path) -> Path:
    """Fill all free space with a file, and return its path."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return filler


def free(folder: Path) -> None:
    """Unmount a small disk, so that the folder has its own content again. Open files on the disk stay writable."""
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)
