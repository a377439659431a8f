import os
from pathlib import Path

import pytest
import torch

from condkd_ray.core.cache import cached, default_cache
from condkd_ray.core.method import InputError


def test_what_is_there_is_not_made_again(tmp_path: Path):
    path = tmp_path / "teachers" / "a.safetensors"
    first = cached(path, lambda: {"x": torch.arange(3)}, "numbers")
    again = cached(path, lambda: pytest.fail("made again"), "numbers")
    assert torch.equal(first["x"], again["x"])
    assert path.stat().st_mode & 0o044 == 0o044, "others may read it"


def test_an_error_while_making_is_passed_on_and_leaves_nothing(tmp_path: Path):
    def broken() -> dict[str, torch.Tensor]:
        raise FileNotFoundError("the data")

    with pytest.raises(FileNotFoundError, match="the data"):
        cached(tmp_path / "a.safetensors", broken, "numbers")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert cached(tmp_path / "a.safetensors", lambda: {"x": torch.ones(1)}, "numbers")["x"] == 1


def test_a_place_that_cannot_be_written_is_answered_in_words(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--cache is .*file.*; accepted: a folder that can be written"):
        cached(tmp_path / "file" / "a.safetensors", lambda: {}, "numbers")


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CONDKD_CACHE", raising=False)
    assert default_cache() == tmp_path / "condkd"
    monkeypatch.setitem(os.environ, "CONDKD_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
