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
    files = find_parquet(root, train, test)
    assert files is not None
    return [path.name for path in files.train.files], [[path.name for path in one.files] for one in files.tests]


def test_shards_form_one_set(tmp_path: Path):
    shards = [f"train-{place:05d}-of-00003.parquet" for place in range(3)]
    touch(tmp_path, *reversed(shards), "test-00000-of-00001.parquet")
    assert found(tmp_path) == (shards, [["test-00000-of-00001.parquet"]])
    (tmp_path / shards[1]).unlink()
    with pytest.raises(InputError, match="number of shards of train"):
        found(tmp_path)


def test_several_test_files_form_several_sets(tmp_path: Path):
    touch(tmp_path, "train.parquet", "test_a.parquet", "test_b.parquet")
    assert found(tmp_path) == (["train.parquet"], [["test_a.parquet"], ["test_b.parquet"]])
    assert found(tmp_path, test="test_b.parquet") == (["train.parquet"], [["test_b.parquet"]])
    assert found(tmp_path, test=str(tmp_path / "test_a.parquet"))[1] == [["test_a.parquet"]]
    with pytest.raises(InputError, match=r"test_c\.parquet"):
        found(tmp_path, test="test_c.parquet")


def test_several_train_files_are_refused_unless_named(tmp_path: Path):
    touch(tmp_path, "train.parquet", "train_small.parquet")
    with pytest.raises(InputError, match="name it with --train-file"):
        found(tmp_path)
    assert found(tmp_path, train="train_small.parquet")[0] == ["train_small.parquet"]
    assert found(tmp_path, train="train*.parquet")[0] == ["train.parquet", "train_small.parquet"]


def test_one_file_is_never_train_and_test(tmp_path: Path):
    touch(tmp_path, "train.parquet")
    with pytest.raises(InputError, match="train and as test"):
        found(tmp_path, test="train.parquet")


def test_parquet_is_found_in_a_subfolder_or_by_its_path(tmp_path: Path):
    touch(tmp_path, "data/train.parquet", "data/test.parquet", "docs/other.txt")
    assert found(tmp_path) == (["train.parquet"], [["test.parquet"]])
    assert found(tmp_path / "data" / "train.parquet") == (["train.parquet"], [["test.parquet"]])
    touch(tmp_path, "more/train.parquet")
    with pytest.raises(InputError, match="folders of Parquet files"):
        found(tmp_path)


def test_without_parquet_files_none_is_returned(tmp_path: Path):
    assert find_parquet(tmp_path, None, None) is None


def notes(root: Path, train: str | None = None, test: str | None = None) -> tuple[str, ...]:
    files = find_parquet(root, train, test)
    assert files is not None
    return files.notes


def test_names_of_shards_may_end_with_a_hash(tmp_path: Path):
    shards = [
        f"test-{k:05d}-of-00002-{code}.parquet" for k, code in enumerate(("70d52db3c749a935", "a35b4ffe0a3a0fbb"))
    ]
    train = "train-00000-of-00001-1359597a978bc4fa.parquet"
    touch(tmp_path, f"data/{train}", *(f"data/{name}" for name in shards))
    assert found(tmp_path) == ([train], [shards])
    touch(tmp_path, f"data/{shards[0].replace('70d5', 'ffff')}")
    with pytest.raises(InputError, match=r"number of shards of test in .* is 3; accepted: 2, each shard once"):
        found(tmp_path)


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev"])
@pytest.mark.parametrize("suffix", ["", "-00000-of-00001", "-00000-of-00001-70d52db3c749a935"])
def test_without_a_test_set_the_validation_set_is_used(tmp_path: Path, name: str, suffix: str):
    file = f"{name}{suffix}.parquet"
    touch(tmp_path, "train.parquet", file)
    assert found(tmp_path) == (["train.parquet"], [[file]])
    assert notes(tmp_path) == (f"{file} is used as the test set, because there is no test file",)
    touch(tmp_path, "test.parquet")
    assert found(tmp_path)[1] == [["test.parquet"]]
    assert notes(tmp_path) == (f"Parquet files that are not read: {file}",)
    assert notes(tmp_path, test=file) == ()


def test_other_files_are_named_in_a_note_and_not_read(tmp_path: Path):
    touch(tmp_path, "train.parquet", "unsupervised.parquet", "value.parquet", "device.parquet", ".train.parquet")
    assert found(tmp_path) == (["train.parquet"], [])
    assert notes(tmp_path) == ("Parquet files that are not read: device.parquet, unsupervised.parquet, value.parquet",)


def test_several_validation_sets_are_several_test_sets(tmp_path: Path):
    touch(tmp_path, "train.parquet", "dev.parquet", "val.parquet")
    assert found(tmp_path)[1] == [["dev.parquet"], ["val.parquet"]]


@pytest.mark.parametrize("above", ["", "plain_text/", "default/"])
@pytest.mark.parametrize("partial", ["", "partial-"])
def test_one_folder_for_each_split_is_read_as_the_hub_converts_data_sets(tmp_path: Path, above: str, partial: str):
    shards = [f"{number:04d}.parquet" for number in range(3)]
    touch(tmp_path, *(f"{above}{partial}train/{name}" for name in shards), f"{above}test/0000.parquet")
    assert found(tmp_path) == (shards, [["0000.parquet"]])
    expected = ("partial-train/ is only a part of the split: the Hub has not converted the rest",) if partial else ()
    assert notes(tmp_path) == expected
    (tmp_path / f"{above}{partial}train" / shards[1]).unlink()
    with pytest.raises(InputError, match=r"numbers of the Parquet files in .*train is \[0, 2\]"):
        found(tmp_path)


def test_a_converted_validation_split_is_the_test_set(tmp_path: Path):
    touch(tmp_path, "default/train/0000.parquet", "default/validation/0000.parquet")
    assert notes(tmp_path) == ("validation/ is used as the test set, because there is no test file",)


@pytest.mark.parametrize("file", ["{}/train/0000.parquet", "{}/train-00000-of-00001.parquet"])
def test_several_configs_are_refused_unless_one_is_named(tmp_path: Path, file: str):
    touch(tmp_path, file.format("fine"), file.format("coarse"))
    with pytest.raises(InputError, match=r"folders of Parquet files in .* is \['coarse', 'fine'\]; accepted: one"):
        found(tmp_path)
    assert found(tmp_path / "fine")[0] == [file.split("/")[-1]]


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "[!x]"])
def test_the_name_of_a_folder_may_look_like_a_pattern(tmp_path: Path, name: str):
    root = tmp_path / name
    touch(tmp_path, f"{name}/train-a.parquet", f"{name}/test.parquet", "run1/train-b.parquet", "acb/train-c.parquet")
    for pattern in ("train-*.parquet", str(root / "train-*.parquet"), "train-a.parquet", "train-[a-c].parquet"):
        assert found(root, train=pattern) == (["train-a.parquet"], [["test.parquet"]])
    assert found(root / "train-a.parquet")[0] == ["train-a.parquet"]


def test_a_pattern_may_name_folders(tmp_path: Path):
    touch(tmp_path, "a/train-0.parquet", "b/train-1.parquet")
    assert found(tmp_path, train="*/train-*.parquet")[0] == ["train-0.parquet", "train-1.parquet"]
    assert found(tmp_path, train=str(tmp_path / "*" / "train-*.parquet"))[0] == ["train-0.parquet", "train-1.parquet"]


def test_only_sets_that_are_read_must_be_complete(tmp_path: Path):
    touch(tmp_path, "train.parquet", "test.parquet", "extra-00000-of-00002.parquet")
    assert found(tmp_path) == (["train.parquet"], [["test.parquet"]])
    assert found(tmp_path, "train.parquet", "test.parquet") == (["train.parquet"], [["test.parquet"]])
    touch(tmp_path, "validation-00000-of-00002.parquet")
    assert found(tmp_path) == (["train.parquet"], [["test.parquet"]])
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(InputError, match=r"number of shards of validation in .* is 1; accepted: 2, each shard once"):
        found(tmp_path)


def test_file_numbers_without_leading_zeros_are_sorted_as_numbers(tmp_path: Path):
    touch(tmp_path, *(f"train/{number}.parquet" for number in range(12)), "test/0.parquet")
    train, _ = found(tmp_path)
    assert [Path(name).stem for name in train] == list(map(str, range(12)))
