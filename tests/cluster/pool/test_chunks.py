import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from condkd_ray.cluster.pool.chunks import HERE, Caller, ChunkCache, write
from condkd_ray.core.chunk_files import JOIN_FROM, Arrays, stored_chunks
from condkd_ray.core.samples import Codec
from condkd_ray.methods.memory.store import to_arrays

CODEC = Codec("unit", toy.MEAN, toy.STD)
ROW = 64 + 8 + 2 * toy.NUM_CLASSES
"""Bytes of an 8x8 image with label and logits."""
EPOCH = "e"
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


def test_a_caller_gets_only_what_has_changed_since_its_version(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for start in (0, 5, 10):
        place(cache, "a", start, 5)
    first = cache.table("a", HERE, EPOCH)
    assert (list(first.changed), first.whole) == ([0, 5, 10], True)
    same = cache.table("a", Caller(have=first.version), EPOCH)
    assert same == (first.version, {}, [], False)
    cache.drop("a", [5, 77], HERE)
    place(cache, "a", 15, 5)
    place(cache, "a", 0, 5)
    then = cache.table("a", Caller(have=first.version), EPOCH)
    assert (list(then.changed), then.removed, then.whole) == ([0, 15], [5], False)
    place(cache, "a", 5, 5)
    last = cache.table("a", Caller(have=then.version), EPOCH)
    assert (list(last.changed), last.removed) == ([5], [])
    assert list(cache.table("a", Caller(have=first.version), EPOCH).changed) == [0, 5, 15]
    # The chunks of an earlier process are other objects.
    other = cache.table("a", Caller(have=last.version.replace(EPOCH, "earlier")), EPOCH)
    assert (list(other.changed), other.whole) == ([0, 5, 10, 15], True)


def test_a_table_costs_as_much_as_has_changed(node, tmp_path, monkeypatch):
    cache = ChunkCache(tmp_path, 10**9)
    monkeypatch.setattr(cache, "_loader", lambda node: NoLoader())
    for start in range(0, 4000, 2):
        cache.place("a", start, write(tmp_path / "a", 0, arrays(2)), HERE)
    version, looked = cache.table("a", HERE, EPOCH).version, []
    cache.place("a", 4000, write(tmp_path / "a", 0, arrays(2)), HERE)
    found = cache._keys["a"]
    found.chunks = CountingDict(found.chunks, looked)
    assert list(cache.table("a", Caller(have=version), EPOCH).changed) == [4000]
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
    cache.drop("some", [0, 4], HERE)
    cache.drop("all", [2 * number for number in range(JOIN_FROM)], HERE)
    assert len(cache.open("some", HERE)) == len(cache.open("all", HERE)) == JOIN_FROM
    for key in ("some", "all"):
        cache.truncate(key, 10**6, HERE)  # waits for the join
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
    cache.table("a", HERE, EPOCH)
    (tmp_path / "a" / f"{6:010d}-{8:010d}.arrow").write_bytes(b"damaged")
    for _ in range(3):
        cache.join("a", 2 * JOIN_FROM, Caller(node))
        cache.truncate("a", 10**6, HERE)
    assert len(cache.open("a", HERE)) == JOIN_FROM
    assert len(caplog.messages) == 1
    assert "chunks of a have not been joined: " in caplog.text


def test_a_deleted_key_leaves_no_file_of_a_join(node, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for number in range(JOIN_FROM):
        place(cache, "a", 2 * number, 2)
    cache.join("a", 2 * JOIN_FROM, Caller(node))
    cache.delete("a")
    assert list(tmp_path.iterdir()) == []


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
