import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import shared

from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.readers import (
    find_parquet,
    idx_set,
    read_folder,
    read_halves,
    read_idx,
    read_idx_pair,
    read_parquet,
    resize,
)
from data.image_files import as_image, idx_bytes, png, random_pixels, write_folder, write_parquet


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), zipped=st.booleans())
def test_idx_gives_back_any_array(tmp_path_factory: pytest.TempPathFactory, shape: list[int], zipped: bool):
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))
    assert torch.equal(read_idx(path), values)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\x1f\x8bno", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x03\x00", b"PK\x03\x04"],
)
def test_what_is_no_idx_is_refused(tmp_path: Path, data: bytes):
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
    with pytest.raises(InputError, match="one an image"):
        read_idx_pair(images, labels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("columns", [("image", "label"), ("img", "labels"), ("img", "fine_label")])
def test_parquet_gives_back_what_was_saved(tmp_path: Path, channels: int, plain: bool, columns: tuple[str, str]):
    pixels, labels = random_pixels(7, channels), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    path = write_parquet(tmp_path / "x.parquet", pixels, labels, plain=plain, columns=columns)
    raw = read_parquet([path])
    assert torch.equal(raw.pixels, pixels)
    assert torch.equal(raw.labels, labels)
    assert raw.class_names == ("0", "1", "2")


def test_parquet_shards_follow_each_other_and_name_their_classes(tmp_path: Path):
    pixels, labels, names = random_pixels(2500, side=4), torch.arange(2500) % 2, ["cat", "dog", "cow"]
    files = [
        write_parquet(tmp_path / f"{place}.parquet", part, marks, names=names)
        for place, (part, marks) in enumerate(zip(pixels.split(1300), labels.split(1300), strict=True))
    ]
    raw = read_parquet(files)
    assert torch.equal(raw.pixels, pixels)
    assert torch.equal(raw.labels, labels)
    assert raw.class_names == ("cat", "dog", "cow")


def test_parquet_of_other_columns_types_or_content_is_refused(tmp_path: Path):
    path = tmp_path / "x.parquet"
    good = pa.array([png(random_pixels(1)[0])])
    for columns, problem in [
        ({"picture": good, "label": [0]}, "columns of .*picture"),
        ({"image": good, "text": [0]}, "columns of .*text"),
        ({"image": good, "label": ["cat"]}, "string.*integers"),
        ({"image": good, "label": pa.array([None], pa.int64())}, "without gaps"),
        ({"image": good, "label": [-1]}, "labels in"),
        ({"image": ["a.png"], "label": [0]}, "binary"),
        ({"image": pa.array([{"bytes": None}], pa.struct([("bytes", pa.binary())])), "label": [0]}, "image 0"),
        ({"image": [b"no image"], "label": [0]}, "cannot read image 0 of"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "number of images"),
    ]:  # fmt: skip
        pq.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=problem):
            read_parquet([path])
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="cannot read Parquet file"):
        read_parquet([path])


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


def test_images_of_several_sizes_need_a_size(tmp_path: Path):
    write_folder(tmp_path, random_pixels(3, side=8), torch.zeros(3, dtype=torch.int64), ["a"])
    write_folder(tmp_path, random_pixels(3, side=12, seed=1), torch.zeros(3, dtype=torch.int64), ["b"])
    with pytest.raises(InputError, match=r"\(12, 12\); accepted: \(8, 8\) as the first, or give a size"):
        read_folder(tmp_path)
    raw = read_folder(tmp_path, size=6)
    both = torch.cat([resize(random_pixels(3, side=8), 6), resize(random_pixels(3, side=12, seed=1), 6)])
    assert torch.equal(raw.pixels, both)


def test_resizing_on_decode_equals_resizing_after(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", random_pixels(5, side=16), torch.zeros(5, dtype=torch.int64))
    assert torch.equal(read_parquet([path], size=7).pixels, resize(random_pixels(5, side=16), 7))


def test_grey_and_colour_together_are_colour(tmp_path: Path):
    grey, colour = random_pixels(1, 1), random_pixels(1, 3)
    write_folder(tmp_path, grey, torch.tensor([0]), ["a"])
    write_folder(tmp_path, colour, torch.tensor([0]), ["b"])
    assert torch.equal(read_folder(tmp_path).pixels, torch.cat([grey.expand(-1, 3, -1, -1), colour]))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_other_modes_become_grey_or_colour(tmp_path: Path, mode: str, channels: int):
    (tmp_path / "a").mkdir()
    as_image(random_pixels(1)[0]).convert("L" if mode == "1" else "RGB").convert(mode).save(tmp_path / "a" / "0.png")
    assert read_folder(tmp_path).pixels.shape == (1, channels, 8, 8)


def test_sixteen_bits_and_other_formats_are_refused(tmp_path: Path):
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    Image.new("I;16", (8, 8)).save(path)
    with pytest.raises(InputError, match=r"I;16.*8 bits"):
        read_folder(tmp_path)
    # Pillow would hand PostScript to another program.
    file = io.BytesIO()
    as_image(random_pixels(1)[0]).save(file, "EPS")
    path.write_bytes(file.getvalue())
    with pytest.raises(InputError, match="cannot read"):
        read_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "bmp", "webp", "PNG"])
def test_formats_of_folders(tmp_path: Path, suffix: str):
    (tmp_path / "a").mkdir()
    as_image(random_pixels(1)[0]).save(tmp_path / "a" / f"0.{suffix}")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert read_folder(tmp_path).pixels.shape == (1, 3, 8, 8)


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


def test_real_fashion_mnist():
    train, test = idx_set("fashion_mnist", shared("FashionMNIST"), download=False)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert train.class_names[9] == "Ankle boot"


def test_real_parquet():
    raw = read_parquet([shared("cifar10", "test_first1017.parquet")])
    assert raw.pixels.shape == (1017, 3, 32, 32)
    assert raw.class_names[:2] == ("airplane", "automobile")
    assert raw.labels[:3].tolist() == [3, 8, 8]


NAMES = ["ant", "bee", "cow"]


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
