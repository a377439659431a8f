from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shared_data import shared

from condkd_ray.core.method import InputError
from condkd_ray.data.readers import read_parquet, resize
from data.image_files import png, random_pixels, write_parquet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("columns", [("image", "label"), ("img", "labels"), ("img", "fine_label")])
def test_written_parquet_is_read_back(tmp_path: Path, channels: int, plain: bool, columns: tuple[str, str]):
    pixels, labels = random_pixels(7, channels), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    path = write_parquet(tmp_path / "x.parquet", pixels, labels, plain=plain, columns=columns)
    raw = read_parquet([path])
    assert torch.equal(raw.pixels, pixels)
    assert torch.equal(raw.labels, labels)
    assert raw.class_names == ("0", "1", "2")


def test_parquet_shards_are_read_in_order_with_their_class_names(tmp_path: Path):
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


def test_resizing_on_decode_equals_resizing_after(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", random_pixels(5, side=16), torch.zeros(5, dtype=torch.int64))
    assert torch.equal(read_parquet([path], size=7).pixels, resize(random_pixels(5, side=16), 7))


def test_real_parquet():
    raw = read_parquet([shared("cifar10", "test_first1017.parquet")])
    assert raw.pixels.shape == (1017, 3, 32, 32)
    assert raw.class_names[:2] == ("airplane", "automobile")
    assert raw.labels[:3].tolist() == [3, 8, 8]


@pytest.mark.parametrize(
    ("labels", "kind", "problem"),
    [
        (
            [0, 10**12],
            pa.int64(),
            r"highest of the labels in .*x\.parquet is 1000000000000; accepted: less than 100000",
        ),
        ([0, 2**64 - 1], pa.uint64(), r"highest of the labels in .*x\.parquet is 18446744073709551615"),
        (
            [0, -1],
            pa.int64(),
            r"lowest of the labels in .* is -1; accepted: 0 or more \(1 of 2 are below\): -1 usually",
        ),
        ([-(2**63), 0], pa.int64(), r"lowest of the labels in .* is -9223372036854775808"),
    ],
)
def test_labels_outside_the_class_numbers_are_refused_before_any_image_is_read(
    tmp_path: Path, labels, kind, problem: str
):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"no image"] * 2, "label": pa.array(labels, kind)}), path)
    with pytest.raises(InputError, match=problem):
        read_parquet([path])


def test_a_label_beyond_the_named_classes_is_refused(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", random_pixels(2), torch.tensor([0, 2]), names=["cat", "dog"])
    with pytest.raises(InputError, match=r"highest of the labels in .* is 2; accepted: less than 2, the number of its"):
        read_parquet([path])


@pytest.mark.parametrize("column", ["label", "image"])
def test_a_damaged_page_is_named(tmp_path: Path, column: str):
    pixels, labels = random_pixels(500, side=16), torch.arange(500) % 7
    path = write_parquet(tmp_path / "x.parquet", pixels, labels)
    parts = pq.ParquetFile(path).metadata.row_group(0)
    places = {parts.column(k).path_in_schema.split(".")[0]: parts.column(k) for k in (0, parts.num_columns - 1)}
    start = places[column].dictionary_page_offset or places[column].data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes([255]) * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot read Parquet file .*x\.parquet"):
        read_parquet([path])


def test_a_column_name_that_is_no_text_is_refused(tmp_path: Path):
    path = write_parquet(tmp_path / "x.parquet", random_pixels(3), torch.arange(3))
    path.write_bytes(path.read_bytes().replace(b"label", b"lab\xfdl"))
    with pytest.raises(InputError, match=r"cannot read Parquet file .*x\.parquet: .*decode"):
        read_parquet([path])
