"""A folder with little room: a file system in memory, over whatever the folder holds."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos.small_machine import NotAllowed


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """`folder` has so much room, such as 16k or 8m, and is empty, until the end of the block, or `free`.

    Raises `NotAllowed` where we may not mount one.
    """
    mount(folder, size)
    try:
        yield folder
    finally:
        free(folder)


def mount(folder: Path, size: str) -> None:
    """Give `folder` so much room. Raises `NotAllowed`."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        raise NotAllowed("no permission to mount a small file system")


def fill(folder: Path) -> Path:
    """Take all the room there is, with a file there: that file."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return filler


def free(folder: Path) -> None:
    """Show what the folder held again, if a small disk is over it. What still writes to that disk goes on there."""
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)
