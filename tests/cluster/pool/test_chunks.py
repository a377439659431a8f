import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from condkd_ray.cluster.pool.chunks import HERE, Caller, ChunkCache, write
from condkd_ray.cluster.pool.loader import ChunkLoader
from condkd_ray.core import chunk_files
from condkd_ray.core.chunk_files import JOIN_FROM, Arrays, read_chunk, stored_chunks
from condkd_ray.core.samples import Codec
from condkd_ray.methods.memory.store import to_arrays

CODEC = Codec("unit", toy.MEAN, toy.STD)
ROW = 64 + 8 + 2 * toy.NUM_CLASSES
"""Bytes of an 8x8 image with label and logits."""
TESTS = Path(__file__).parents[2]


@pytest.fixture
def node(cluster) -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def arrays(count: int, seed: int = 0) -> Arrays:
    return to_arrays(CODEC.encode(toy.samples(count, seed=seed)))


def place(cache: ChunkCache, key: str, start: int, size: int, caller: Caller = HERE) -> None:
    cache.place(key, start, write(cache.folder / key, start, arrays(size, seed=start)), caller)


def on_disk(cache: ChunkCache, key: str) -> list[int]:
    return [start for start, placed in cache.open(key, HERE).items() if isinstance(placed.source, Path)]


def wait_for_joins(cache: ChunkCache, key: str) -> None:
    """Wait until the chunks of `key` that are being joined have been replaced."""
    deadline = time.monotonic() + 60
    while cache._keys[key].joins:
        assert time.monotonic() < deadline
        cache.join(key, 0, HERE)
        time.sleep(0.02)


def test_a_caller_gets_only_what_has_changed_since_its_version(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for start in (0, 5, 10):
        place(cache, "a", start, 5)
    first = cache.table("a", HERE)
    assert (list(first.changed), first.whole) == ([0, 5, 10], True)
    same = cache.table("a", Caller(have=first.version))
    assert same == (first.version, {}, [], False)
    cache.drop("a", {5: 5, 77: 5, 10: 9}, HERE)
    place(cache, "a", 15, 5)
    place(cache, "a", 0, 5)
    then = cache.table("a", Caller(have=first.version))
    assert (list(then.changed), then.removed, then.whole) == ([0, 15], [5], False)
    place(cache, "a", 5, 5)
    last = cache.table("a", Caller(have=then.version))
    assert (list(last.changed), last.removed) == ([5], [])
    assert list(cache.table("a", Caller(have=first.version)).changed) == [0, 5, 15]
    # The chunks of a key that was deleted are others.
    cache.delete("a")
    for start in (0, 5, 10, 15):
        place(cache, "a", start, 5)
    other = cache.table("a", Caller(have=last.version))
    assert (list(other.changed), other.whole) == ([0, 5, 10, 15], True)


def test_a_table_costs_as_much_as_has_changed(node, tmp_path, monkeypatch):
    cache = ChunkCache(tmp_path, 10**9)
    monkeypatch.setattr(cache, "_loader", lambda node: NoLoader())
    for start in range(0, 4000, 2):
        cache.place("a", start, write(tmp_path / "a", 0, arrays(2)), HERE)
    version, looked = cache.table("a", HERE).version, []
    cache.place("a", 4000, write(tmp_path / "a", 0, arrays(2)), HERE)
    found = cache._keys["a"]
    found.chunks = CountingDict(found.chunks, looked)
    assert list(cache.table("a", Caller(have=version)).changed) == [4000]
    assert len(looked) < 5


class NoLoader:
    """Stands for a loader where only the pool's own tables are looked at: no copy is made."""

    def __getattr__(self, name: str):
        class Method:
            remote = staticmethod(lambda *given: object())

        return Method


class CountingDict(dict):
    """A dict that lists the keys that are looked up."""

    def __init__(self, content: dict, looked: list) -> None:
        super().__init__(content)
        self._looked = looked

    def __getitem__(self, key):
        self._looked.append(key)
        return super().__getitem__(key)

    def __iter__(self):
        for key in super().__iter__():
            self._looked.append(key)
            yield key


def test_copies_of_a_trials_key_count_on_its_node_and_shared_ones_on_every_node(node, tmp_path, monkeypatch):
    cache = ChunkCache(tmp_path, 25 * ROW)
    monkeypatch.setattr(cache, "_loader", lambda node: NoLoader())
    first, second = Caller("node 1"), Caller("node 2")
    for start in (0, 10):
        place(cache, "a", start, 10, first)
        place(cache, "b", start, 10, second)
    assert (on_disk(cache, "a"), on_disk(cache, "b"), cache.shed) == ([], [], 0)
    place(cache, "a", 20, 10, first)
    assert (on_disk(cache, "a"), on_disk(cache, "b"), cache.shed) == ([0], [], 10 * ROW)
    place(cache, "s", 0, 10, Caller("node 2", shared=True))
    # The shared copy leaves room for one more of each node.
    assert (on_disk(cache, "a"), on_disk(cache, "b"), on_disk(cache, "s")) == ([0, 10], [0], [])
    cache.delete("s")
    place(cache, "a", 30, 10, first)
    assert on_disk(cache, "a") == [0, 10]


def test_chunks_that_are_dropped_while_they_are_joined_go_with_the_joined_chunk(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for key in ("some", "all"):
        for number in range(JOIN_FROM):
            place(cache, key, 2 * number, 2)
        cache.join(key, 2 * JOIN_FROM, Caller(node))
    cache.drop("some", {0: 2, 4: 2}, HERE)
    cache.drop("all", {2 * number: 2 for number in range(JOIN_FROM)}, HERE)
    assert len(cache.open("some", HERE)) == len(cache.open("all", HERE)) == JOIN_FROM
    for key in ("some", "all"):
        wait_for_joins(cache, key)
    # A call that is repeated means the chunk before the join, not the joined one.
    cache.drop("some", {0: 2}, HERE)
    ((start, placed),) = cache.open("some", HERE).items()
    assert (start, placed.size, placed.num_bytes) == (0, 2 * JOIN_FROM, 2 * JOIN_FROM * ROW)
    assert [path.name for path in stored_chunks(tmp_path / "some")] == [f"{0:010d}-{2 * JOIN_FROM:010d}.arrow"]
    assert cache.open("all", HERE) == {}
    assert stored_chunks(tmp_path / "all") == []


def test_a_join_that_fails_leaves_its_parts_and_is_logged_once(node, tmp_path, caplog):
    caplog.set_level("INFO")
    cache = ChunkCache(tmp_path, 10**6)
    for number in range(JOIN_FROM):
        place(cache, "a", 2 * number, 2)
    cache.table("a", HERE)
    (tmp_path / "a" / f"{6:010d}-{8:010d}.arrow").write_bytes(b"damaged")
    # The copy of the damaged file is lost, too.
    cache.reload("a", {6: cache.open("a", HERE)[6].source}, Caller(node))
    cache.join("a", 2 * JOIN_FROM, Caller(node))
    cache.drop("a", {0: 2}, HERE)
    wait_for_joins(cache, "a")
    assert list(cache.open("a", HERE)) == [2 * number for number in range(1, JOIN_FROM)]
    (message,) = caplog.messages
    assert message.startswith("chunks of a have not been joined: ")
    assert "0000000006-0000000008.arrow: " in message
    assert len(message.splitlines()) == 1


def test_a_deleted_key_leaves_no_file_of_a_join(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for number in range(JOIN_FROM):
        place(cache, "a", 2 * number, 2)
    cache.join("a", 2 * JOIN_FROM, Caller(node))
    cache.delete("a")
    assert cache.keys == []
    cache.wait_for_joins(30)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_opened_again_keeps_its_files_when_its_old_join_ends(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for _ in range(2):
        for number in range(JOIN_FROM):
            place(cache, "a", 2 * number, 2)
        cache.join("a", 2 * JOIN_FROM, Caller(node))
        if cache.open("a", HERE)[0].size == 2:
            cache.truncate("a", 0, HERE)
    for number in range(JOIN_FROM):
        place(cache, "a", 2 * number, 2)
    cache.wait_for_joins(30)
    assert len(stored_chunks(tmp_path / "a")) == JOIN_FROM == len(list((tmp_path / "a").iterdir()))


def test_the_pool_does_not_wait_for_a_slow_join(node, tmp_path, monkeypatch):
    import ray

    @ray.remote(num_cpus=0, concurrency_groups={"join": 1})
    class SlowLoader(ChunkLoader):
        @ray.method(concurrency_group="join", num_returns=2)
        def join(self, target, *parts):
            time.sleep(60)

    slow = SlowLoader.remote()
    cache = ChunkCache(tmp_path, 10**6)
    monkeypatch.setattr(cache, "_loader", lambda node: slow)
    for number in range(JOIN_FROM):
        place(cache, "a", 2 * number, 2)
    ray.get([placed.source for placed in cache.open("a", HERE).values()])
    begin = time.monotonic()
    cache.join("a", 2 * JOIN_FROM, Caller(node))
    cache.join("a", 2 * JOIN_FROM, Caller(node))
    cache.copy("b", "a", HERE)
    cache.truncate("a", 6, HERE)
    cache.delete("a")
    assert time.monotonic() - begin < 10
    assert len(cache.open("b", HERE)) == JOIN_FROM
    ray.kill(slow)


def test_chunks_beyond_the_last_id_are_removed_although_the_pool_does_not_know_them(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    place(cache, "a", 0, 5)
    write(tmp_path / "a", 5, arrays(5))
    write(tmp_path / "a", 10, arrays(5))
    cache.truncate("a", 8, HERE)
    assert list(ChunkCache(tmp_path, 10**6).open("a", HERE)) == [0]


def test_a_key_whose_files_cannot_be_read_at_first_is_read_again(node, tmp_path, monkeypatch):
    for start in (0, 5, 10):
        write(tmp_path / "a", start, arrays(5))
    cache, calls = ChunkCache(tmp_path, 10**6), []

    def read(path: Path) -> Arrays:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EIO, "the disk failed", str(path))
        return read_chunk(path)

    monkeypatch.setattr(chunk_files, "read_chunk", read)
    with pytest.raises(OSError, match="the disk failed"):
        cache.open("a", HERE)
    assert list(cache.open("a", HERE)) == [0, 5, 10]


def test_a_trial_that_moves_to_another_node_takes_the_count_of_its_copies_along(node, tmp_path, monkeypatch):
    cache = ChunkCache(tmp_path, 25 * ROW)
    monkeypatch.setattr(cache, "_loader", lambda node: NoLoader())
    place(cache, "a", 0, 10, Caller("node 1"))
    place(cache, "b", 0, 20, Caller("node 2"))
    cache.table("a", Caller("node 2"))
    place(cache, "c", 0, 5, Caller("node 1"))
    # The oldest copy on the second node goes first.
    assert (on_disk(cache, "a"), on_disk(cache, "b"), on_disk(cache, "c")) == ([], [0], [])
    place(cache, "c", 5, 20, Caller("node 1"))
    assert (on_disk(cache, "a"), on_disk(cache, "c")) == ([], [])


def test_a_lost_copy_is_put_again_once(node, tmp_path):
    import ray

    cache = ChunkCache(tmp_path, 10**6)
    place(cache, "a", 0, 5, Caller(node))
    lost = {0: cache.open("a", HERE)[0].source, 99: None}
    cache.reload("a", lost, Caller(node))
    again = cache.open("a", HERE)[0].source
    assert again != lost[0]
    assert (ray.get(again)[1] == arrays(5)[1]).all()
    cache.reload("a", lost, Caller(node))
    assert cache.open("a", HERE)[0].source == again


@pytest.mark.fault
def test_samples_are_read_after_the_node_of_their_copies_was_lost(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(TESTS / "cluster" / "pool" / "losing_copies.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all samples were there"
