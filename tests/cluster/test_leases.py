from types import SimpleNamespace

from condkd_ray.cluster import pool as module
from condkd_ray.cluster.pool import SILENCE_SECONDS, SyntheticPool


def test_one_holds_it_until_released(tmp_path):
    pool = SyntheticPool(tmp_path, 0)
    assert pool.claim("k", "a")
    assert pool.claim("k", "a")
    assert not pool.claim("k", "b")
    assert pool.claim("other", "b")
    pool.release("k", "b")
    assert pool.maker("k") == "a"
    pool.release("k", "a")
    assert pool.maker("k") == ""
    assert pool.claim("k", "b")


def test_the_silent_lose_it(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pool = SyntheticPool(tmp_path, 0)
    assert pool.claim("k", "a")
    now[0] += SILENCE_SECONDS - 1
    assert not pool.claim("k", "b")
    assert pool.claim("k", "a")  # a sign of life
    now[0] += SILENCE_SECONDS - 1
    assert not pool.claim("k", "b")
    now[0] += 2
    assert pool.claim("k", "b")
    assert not pool.claim("k", "a")
    pool.release("k", "a")
    assert pool.maker("k") == "b"
