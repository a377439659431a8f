import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from condkd_ray.commands import pool
from condkd_ray.commands.pool import pool_table
from condkd_ray.core.method import InputError


def write(out: Path, keys: list[dict]) -> None:
    (out / "chunks").mkdir(parents=True)
    status = {"limit": 5_000_000, "keys": keys, "time": 1000.0}
    (out / "chunks" / "pool.json").write_text(json.dumps(status))


def entry(key: str, **changes) -> dict:
    sizes = {"chunks": 2, "samples": 256, "bytes": 1_500_000, "spilled_bytes": 500_000}
    return {"key": key, **sizes, "rounds": 2, "readers": 3, "hits": 4, "maker": "abcdef0123456789"} | changes


def test_the_contents_of_a_pool_are_shown_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "time", SimpleNamespace(time=lambda: 1065.0))
    write(tmp_path, [entry("shared"), entry("own-one", rounds=0, readers=1, hits=0, maker="", spilled_bytes=0)])
    lines = pool_table(tmp_path).splitlines()
    assert lines[0].split()[-2:] == ["made", "by"]
    assert lines[0].split()[:6] == ["key", "trials", "rounds", "chunks", "samples", "MB"]
    assert lines[1].split() == ["shared", "3", "2", "2", "256", "1.5", "0.5", "4", "abcdef012345"]
    assert lines[2].split() == ["own-one", "1", "-", "2", "256", "1.5", "0.0", "0", "-"]
    assert lines[3] == "3.0 MB, of which 0.5 MB on disk alone; limit 5.0 MB of shared memory"
    assert lines[4] == "as of 1 min 05 s ago"
    assert len({len(line) for line in lines[:3]}) == 1


def test_an_empty_pool_has_a_message(tmp_path):
    write(tmp_path, [])
    assert pool_table(tmp_path).startswith("no samples are held\n0.0 MB")


def test_a_folder_without_a_valid_pool_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no chunks/pool\.json"):
        pool_table(tmp_path)
    write(tmp_path, [])
    for content in (b"", b"{}", b"[1]", b'{"keys": [1]}', b"\0\0"):
        (tmp_path / "chunks" / "pool.json").write_bytes(content)
        with pytest.raises(InputError, match=r"holds no chunks/pool\.json"):
            pool_table(tmp_path)
