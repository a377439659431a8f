"""Tests of storage, with the same results for local folders and S3 buckets."""

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import toy

from condkd_ray.core import checkpoint as states
from condkd_ray.core.chunk_files import chunk_path, chunk_range, read_chunk, stored_chunks, write_chunk
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Codec
from condkd_ray.core.storage import (
    Location,
    Remote,
    StorageFullError,
    atomic_write,
    check_writable,
    files,
    get_text,
    locate,
    naming,
    no_room,
    put_text,
    reading,
    remove,
    take,
    writing,
)
from condkd_ray.methods.memory.store import LocalStore, to_arrays


@dataclass
class Bank:
    rows: torch.Tensor
    cursor: int = 0


CODEC = Codec("unit", toy.MEAN, toy.STD)


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path) -> Location:
    return tmp_path / "some" / "folder" if request.param == "folder" else locate(request.getfixturevalue("bucket"))


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder in which this process creates temporary files."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def content(folder: Location) -> dict[str, str]:
    return {file.name: get_text(file) for file in files(folder)}


def test_a_file_is_written_read_listed_and_deleted(place, temporary):
    put_text(place / "a" / "x.txt", "first")
    put_text(place / "a" / "x.txt", "second")
    put_text(place / "a" / "b" / "y.txt", "below")
    assert content(place / "a") == {"x.txt": "second"}
    assert (place / "a" / "x.txt").is_file()
    assert not (place / "a").is_file()
    (place / "a" / "x.txt").unlink()
    assert not (place / "a" / "x.txt").is_file()
    assert content(place / "a" / "b") == {"y.txt": "below"}
    assert list(temporary.iterdir()) == []


def test_missing_files_and_folders(place):
    assert files(place / "nothing") == []
    assert not (place / "nothing").is_file()
    (place / "nothing").unlink(missing_ok=True)
    remove(place / "nothing")
    with pytest.raises(FileNotFoundError):
        (place / "nothing").unlink()
    with pytest.raises(FileNotFoundError):
        get_text(place / "nothing")


def test_remove_deletes_a_folder_with_its_contents_and_no_other(place):
    for name in ("trial", "trial2"):
        put_text(place / name / "x", name)
        put_text(place / name / "deep" / "y", name)
    remove(place / "trial")
    assert files(place / "trial") == files(place / "trial" / "deep") == []
    assert content(place / "trial2") == {"x": "trial2"}
    assert content(place / "trial2" / "deep") == {"y": "trial2"}


def test_a_failed_write_leaves_only_the_old_file(place, temporary):
    put_text(place / "x", "old")

    def write_half() -> None:
        with writing(place / "x") as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert content(place) == {"x": "old"}
    assert list(temporary.iterdir()) == []


def test_a_file_appears_only_when_it_is_complete(place):
    with writing(place / "x") as partial:
        partial.write_text("half")
        assert not (place / "x").is_file()
    assert get_text(place / "x") == "half"


def test_an_empty_file_can_be_written(place):
    put_text(place / "x", "")
    assert content(place) == {"x": ""}


def test_a_large_file_is_read_bit_for_bit(place):
    tensor = torch.randint(256, (20_000_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with writing(place / "x") as partial:
        partial.write_bytes(tensor.numpy().tobytes())
    with reading(place / "x") as local:
        assert local.read_bytes() == tensor.numpy().tobytes()


def test_name_and_stem_of_a_file(place):
    file = place / "chunks" / "0000000000-0000000004.arrow"
    assert (file.name, file.stem) == ("0000000000-0000000004.arrow", "0000000000-0000000004")


def test_a_location_can_be_pickled(place):
    put_text(place / "x", "here")
    assert get_text(pickle.loads(pickle.dumps(place)) / "x") == "here"


def test_take_moves_a_file_to_a_local_folder(place, tmp_path):
    put_text(place / "x", "moved")
    take(place / "x", tmp_path / "new" / "y")
    assert content(tmp_path / "new") == {"y": "moved"}
    assert files(place) == []


def test_take_moves_a_file_between_file_systems(tmp_path):
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as apart:
        put_text(Path(apart, "x"), "moved")
        take(Path(apart, "x"), tmp_path / "y")
        assert list(Path(apart).iterdir()) == []
    assert content(tmp_path) == {"y": "moved"}


def test_a_state_is_saved_and_loaded(place, temporary):
    state = Bank(torch.randn(3, 4), 7)
    states.save(state, place / "state.safetensors")
    loaded = states.load(Bank(torch.zeros(3, 4)), place / "state.safetensors")
    assert (loaded.cursor, loaded.rows.tolist()) == (7, state.rows.tolist())
    assert list(temporary.iterdir()) == []


def test_chunks_are_written_found_and_mapped(place, temporary):
    arrays = to_arrays(CODEC.encode(toy.samples(4)))
    for start in (4, 0):
        write_chunk(chunk_path(place, start, start + 4), arrays)
    put_text(place / ".0000000000-0000000008.arrow.1.partial", "half")
    assert [chunk_range(path) for path in stored_chunks(place)] == [(0, 4), (4, 8)]
    found = read_chunk(stored_chunks(place)[1])
    assert list(temporary.iterdir()) == []
    assert all((left == right).all() for left, right in zip(found, arrays, strict=True))


def test_a_store_keeps_its_chunks_in_the_storage(place):
    store = LocalStore(CODEC, toy.NUM_CLASSES, place)
    store.append(toy.samples(4))
    dropped = store.append(toy.samples(2))
    store.drop(dropped)
    store.commit()
    again = LocalStore(CODEC, toy.NUM_CLASSES, place)
    assert again.num_ids == 4
    assert torch.equal(again.gather(torch.arange(4)).images, store.gather(torch.arange(4)).images)


def test_check_writable_leaves_no_files(place):
    check_writable(place)
    assert files(place) == []


def test_locate_distinguishes_paths_and_uris(tmp_path):
    assert locate("runs/a b") == Path.cwd() / "runs/a b"
    assert locate(tmp_path.as_uri()) == tmp_path
    assert locate("s3://bucket/some/folder?region=us-east-1") == Remote("s3://bucket/some/folder?region=us-east-1")


def test_the_text_of_a_remote_omits_its_options():
    text = str(Remote("s3://bucket/some/folder/?region=us-east-1") / "trials" / "x")
    assert text == "s3://bucket/some/folder/trials/x"


@pytest.mark.parametrize("uri", ["what://x/y", "hdfs://x/y", "mock:///x", "s3://", "s3:///x", "file://host/x"])
def test_uris_of_unknown_storage_are_rejected(uri):
    with pytest.raises(InputError, match=r"--storage is '.*accepted: a folder, or the URI"):
        locate(uri)


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "s3://secret@bucket/x", "abfs://:secret@account/x"])
def test_uris_with_secrets_are_rejected_without_repeating_the_secret(uri):
    with pytest.raises(InputError, match="without secrets") as caught:
        locate(uri)
    assert "secret@" not in str(caught.value)


def test_a_missing_bucket_is_rejected(s3, capfd):
    with pytest.raises(InputError, match=r"--storage is 's3://nobody/x'; accepted: .*NO_SUCH_BUCKET"):
        check_writable(locate(f"s3://nobody/x?{s3}"))
    assert capfd.readouterr() == ("", "")


class Forbidding(BaseHTTPRequestHandler):
    """Request handler of a server that denies all access."""

    def do_PUT(self):
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        pass


def test_a_bucket_without_write_access_is_rejected():
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            uri = f"s3://bucket/x?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
            with pytest.raises(InputError, match=r"'s3://bucket/x'; accepted: .*ACCESS_DENIED"):
                check_writable(locate(uri))
        finally:
            server.shutdown()


def test_an_unknown_option_is_rejected():
    with pytest.raises(InputError, match="nonsense"):
        check_writable(locate("s3://bucket/x?nonsense=1"))


def test_a_file_instead_of_a_folder_is_rejected(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match=r"--storage is .*accepted: a folder"):
        check_writable(tmp_path / "x")


WRITE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from condkd_ray.core import checkpoint as state
from condkd_ray.core.storage import no_room
from condkd_ray.core.chunk_files import write_chunk
from condkd_ray.trial.outcome import Product
from condkd_ray.core.storage import atomic_write

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


def test_all_writers_name_the_file_for_which_there_was_no_room_and_keep_the_old_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], capture_output=True, text=True, check=True)
    names = ["state", "00-09.arrow", "record"]
    assert done.stdout.splitlines() == [f"{tmp_path / name}: File too large" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"as before"}


def test_no_room_recognises_only_errors_of_full_storage():
    assert no_room(OSError(errno.ENOSPC, "", "x")) == "x: No space left on device"
    assert no_room(StorageFullError("there: why")) == "there: why"
    assert no_room(PermissionError(errno.EACCES, "denied", "x")) is None
    assert no_room(ValueError("No space left on device")) is None


def fail():
    try:
        raise OSError(errno.EDQUOT, "", "x")
    except OSError as error:
        raise RuntimeError("a task failed") from error


def test_no_room_finds_the_cause_of_other_errors():
    with pytest.raises(RuntimeError) as caught:
        fail()
    assert no_room(caught.value) == "x: Disk quota exceeded"


def test_other_errors_are_not_changed():
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
