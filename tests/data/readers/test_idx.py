import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared

from condkd_ray.core.method import InputError
from condkd_ray.data.readers import idx_set, read_idx, read_idx_pair
from data.image_files import idx_bytes, random_pixels


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), zipped=st.booleans())
def test_any_array_is_read_back_from_idx(tmp_path_factory: pytest.TempPathFactory, shape: list[int], zipped: bool):
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))
    assert torch.equal(read_idx(path), values)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\x1f\x8bno", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x03\x00", b"PK\x03\x04"],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "values"
    path.write_bytes(data)
    with pytest.raises(InputError, match="values"):
        read_idx(path)


def test_idx_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "values"
    path.write_bytes(idx_bytes(torch.arange(9))[:-1])
    with pytest.raises(InputError, match=r"is 16; accepted: 17"):
        read_idx(path)


def test_idx_images_and_labels_must_agree(tmp_path: Path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_bytes(random_pixels(3, 1)[:, 0]))
    labels.write_bytes(idx_bytes(torch.arange(2)))
    with pytest.raises(InputError, match="one label per image"):
        read_idx_pair(images, labels)


def test_real_fashion_mnist():
    train, test = idx_set("fashion_mnist", shared("FashionMNIST"), download=False)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert train.class_names[9] == "Ankle boot"


@pytest.mark.parametrize("damage", ["block", "checksum", "cut", "header"])
def test_a_damaged_gzip_is_named(tmp_path: Path, damage: str):
    packed = bytearray(gzip.compress(idx_bytes(random_pixels(50, 1)[:, 0])))
    if damage == "block":
        packed[12:40] = bytes(28)
    if damage == "checksum":
        packed[-8:-4] = bytes(4)
    if damage == "header":
        packed[2] = 9
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(packed[:-200] if damage == "cut" else packed)
    with pytest.raises(InputError, match=r"cannot read IDX file .*train-images-idx3-ubyte\.gz: "):
        read_idx(path)
