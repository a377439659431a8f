from pathlib import Path

import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.readers import read_folder, read_halves
from data.image_files import random_pixels, write_folder

NAMES = ["ant", "bee", "cow"]


def test_folder_gives_back_what_was_saved_class_by_class(tmp_path: Path):
    pixels, labels = random_pixels(9), torch.arange(9) % 3
    raw = read_folder(write_folder(tmp_path, pixels, labels, ["b", "a", "c"]))
    assert raw.class_names == ("a", "b", "c")
    order = torch.tensor([1, 4, 7, 0, 3, 6, 2, 5, 8])
    assert torch.equal(raw.pixels, pixels[order])
    assert raw.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_folders_named_by_numbers_are_ordered_as_numbers(tmp_path: Path):
    names = [str(number) for number in range(12)]
    raw = read_folder(write_folder(tmp_path, random_pixels(12), torch.arange(12), names))
    assert raw.class_names == tuple(names)
    assert torch.equal(raw.pixels, random_pixels(12))


def test_folder_without_classes_or_images_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="existing folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="one sub-folder a class"):
        read_folder(tmp_path)
    write_folder(tmp_path, random_pixels(2), torch.arange(2), ["a", "b"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        read_folder(tmp_path)


def folder(root: Path, counts: list[int]) -> Path:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return write_folder(root, random_pixels(len(labels)), labels, NAMES)


def test_half_of_each_class_is_held_out_and_no_image_is_on_both_sides(tmp_path: Path):
    train, test = read_halves(folder(tmp_path, [3, 4, 7]), None, 0)
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([2, 2, 4], [1, 2, 3])
    rows = torch.cat([train.pixels, test.pixels]).flatten(1)
    assert len(rows.unique(dim=0)) == 14


def test_the_split_follows_the_data_seed_and_the_digest_follows_the_split(tmp_path: Path):
    root = folder(tmp_path, [9, 9, 9])
    one, again, other = (load(DataConfig(name="class_folders", root=root, seed=seed)) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest
    assert one.class_names == tuple(NAMES)
    assert one.val is None


def test_a_class_of_two_images_is_refused_by_name(tmp_path: Path):
    with pytest.raises(InputError, match=r"class bee in .* is 2; accepted: 3 or more"):
        read_halves(folder(tmp_path, [5, 2, 4]), None, 0)


def test_classes_txt_orders_the_classes_and_must_name_each_once(tmp_path: Path):
    root = folder(tmp_path, [3, 4, 5])
    (root / "classes.txt").write_text("cow\nant\n\nbee\n")
    train, test = read_halves(root, None, 0)
    assert train.class_names == ("cow", "ant", "bee")
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [5, 3, 4]
    (root / "classes.txt").write_text("cow\nant\n")
    with pytest.raises(InputError, match=r"classes.txt is \['cow', 'ant'\]; accepted: each of ant, bee, cow once"):
        read_halves(root, None, 0)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"number of class folders in .* is 0"):
        read_halves(tmp_path, None, 0)
