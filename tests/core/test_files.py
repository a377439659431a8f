"""Files that are whole or not there; full storage as the system really tells of it, by a limit on their size."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from condkd_ray.core.files import StorageFullError, atomic_write, naming, no_room

WRITE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from condkd_ray.core import checkpoint as state
from condkd_ray.core.files import no_room
from condkd_ray.methods.memory.store import write_chunk
from condkd_ray.trial.product import Product
from condkd_ray.core.files import atomic_write

folder = Path(sys.argv[1])
arrays = (np.zeros((9, 1, 32, 32), np.uint8), np.zeros(9, np.int64), np.zeros((9, 4), np.float16))
writers = {
    "state": lambda path: state.save(Product(images=torch.zeros(9999)), path),
    "00-09.arrow": lambda path: write_chunk(path, arrays),
    "record": lambda path: atomic_write(path, bytes(9999)),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for name, write in writers.items():
    (folder / name).write_bytes(b"as before")
    try:
        write(folder / name)
    except OSError as error:
        print(no_room(error))
"""


def test_whatever_is_written_says_where_there_was_no_room_and_leaves_what_was_there(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], capture_output=True, text=True, check=True)
    names = ["state", "00-09.arrow", "record"]
    assert done.stdout.splitlines() == [f"{tmp_path / name}: File too large" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"as before"}


def test_only_full_storage_is_full_storage():
    assert no_room(OSError(errno.ENOSPC, "", "x")) == "x: No space left on device"
    assert no_room(StorageFullError("there: why")) == "there: why"
    assert no_room(PermissionError(errno.EACCES, "denied", "x")) is None
    assert no_room(ValueError("No space left on device")) is None


def fail():
    try:
        raise OSError(errno.EDQUOT, "", "x")
    except OSError as error:
        raise RuntimeError("a task failed") from error


def test_it_is_found_behind_other_errors():
    with pytest.raises(RuntimeError) as caught:
        fail()
    assert no_room(caught.value) == "x: Disk quota exceeded"


def test_other_errors_pass_as_they_are():
    with pytest.raises(ValueError, match="no number"), naming(Path("x")):
        raise ValueError("no number")
    with pytest.raises(OSError, match="by us alone"), naming(Path("x")):
        raise OSError("by us alone")
    with pytest.raises(PermissionError, match="'x'"), naming(Path("x")):
        raise PermissionError(errno.EACCES, "denied")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
