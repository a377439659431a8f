from pathlib import Path

import pytest

from condkd_ray.core.method import InputError
from condkd_ray.data.readers import find_parquet


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root: Path, train: str | None = None, test: str | None = None) -> tuple[list[str], list[list[str]]]:
    trains, tests = find_parquet(root, train, test) or ([], [])
    return [path.name for path in trains], [[path.name for path in files] for files in tests]


def test_shards_are_one_set(tmp_path: Path):
    shards = [f"train-{place:05d}-of-00003.parquet" for place in range(3)]
    touch(tmp_path, *reversed(shards), "test-00000-of-00001.parquet")
    assert found(tmp_path) == (shards, [["test-00000-of-00001.parquet"]])
    (tmp_path / shards[1]).unlink()
    with pytest.raises(InputError, match="number of shards of train"):
        found(tmp_path)


def test_several_test_files_are_several_sets(tmp_path: Path):
    touch(tmp_path, "train.parquet", "test_a.parquet", "test_b.parquet")
    assert found(tmp_path) == (["train.parquet"], [["test_a.parquet"], ["test_b.parquet"]])
    assert found(tmp_path, test="test_b.parquet") == (["train.parquet"], [["test_b.parquet"]])
    assert found(tmp_path, test=str(tmp_path / "test_a.parquet"))[1] == [["test_a.parquet"]]
    with pytest.raises(InputError, match=r"test_c\.parquet"):
        found(tmp_path, test="test_c.parquet")


def test_several_train_files_are_never_mixed_unasked(tmp_path: Path):
    touch(tmp_path, "train.parquet", "train_small.parquet")
    with pytest.raises(InputError, match="name it with --train-file"):
        found(tmp_path)
    assert found(tmp_path, train="train_small.parquet")[0] == ["train_small.parquet"]
    assert found(tmp_path, train="train*.parquet")[0] == ["train.parquet", "train_small.parquet"]


def test_one_file_is_never_train_and_test(tmp_path: Path):
    touch(tmp_path, "train.parquet")
    with pytest.raises(InputError, match="train and as test"):
        found(tmp_path, test="train.parquet")


def test_parquet_in_a_sub_folder_or_named_itself(tmp_path: Path):
    touch(tmp_path, "data/train.parquet", "data/test.parquet", "docs/other.txt")
    assert found(tmp_path) == (["train.parquet"], [["test.parquet"]])
    assert found(tmp_path / "data" / "train.parquet") == (["train.parquet"], [["test.parquet"]])
    touch(tmp_path, "more/train.parquet")
    with pytest.raises(InputError, match="folders of Parquet files"):
        found(tmp_path)


def test_no_parquet_is_none(tmp_path: Path):
    assert find_parquet(tmp_path, None, None) is None
