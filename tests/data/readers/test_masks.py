"""Data sets with masks in files: their layouts, what masks hold, and what is refused."""

import io
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from condkd_ray.core.config import build
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, Dataset, load
from condkd_ray.data.readers import CAMVID_NAMES, resize
from condkd_ray.testing.datasets import check_dataset
from data.image_files import as_image, random_pixels

HEIGHT, WIDTH = 6, 8
COUNTS = {"train": 8, "val": 3, "test": 4}
LONG = {"train": "training", "val": "validation", "test": "testing"}
TABLE = "name,r,g,b\nroad,128,64,128\nsky,0,0,255\ntree,10,200,0\nvoid,0,0,0\n"


def images_of(part: str) -> Tensor:
    return random_pixels(COUNTS[part], side=WIDTH, seed=len(part) * 7 + COUNTS[part])[:, :, :HEIGHT]


def values_of(part: str, classes: int = 3) -> Tensor:
    """Return the values of the masks of a part, (N, H, W): classes, and 255 in one corner."""
    rng = torch.Generator().manual_seed(len(part))
    values = torch.randint(0, classes, (COUNTS[part], HEIGHT, WIDTH), generator=rng)
    values[:, 0, :3] = torch.arange(classes)[-3:]
    values[:, -1, -1] = 255
    return values


def as_mask(values: Tensor, mode: str = "L") -> Image.Image:
    array = values.numpy()
    if mode == "I;16":
        return Image.fromarray(array.astype(np.uint16))
    if mode == "1":
        return Image.fromarray(array.astype(np.uint8) * 255).convert("1")
    image = Image.fromarray(array.astype(np.uint8))
    if mode == "P":
        image.putpalette([(value * 83 + 40) % 256 for value in range(768)])
    return image


def folder_names(layout: str, part: str) -> tuple[str, str]:
    return {
        "camvid": (part, f"{part}annot"),
        "inner": (f"{part}/images", f"{part}/masks"),
        "outer": (f"images/{part}", f"masks/{part}"),
        "ade": (f"images/{LONG[part]}", f"annotations/{LONG[part]}"),
    }[layout]


def written(root: Path, layout: str = "inner", parts: tuple[str, ...] = tuple(COUNTS), mode: str = "L") -> Path:
    for part in parts:
        for folder, made in zip(folder_names(layout, part), ("images", "masks"), strict=True):
            (root / folder).mkdir(parents=True)
            for row in range(COUNTS[part]):
                image = as_image(images_of(part)[row]) if made == "images" else as_mask(values_of(part)[row], mode)
                image.save(root / folder / f"{row:03d}.png")
    return root


def labels_of(part: str) -> Tensor:
    values = values_of(part)
    return values.masked_fill(values == 255, -1).to(torch.int16)


def assert_is_written(dataset: Dataset) -> None:
    for part in COUNTS:
        images = getattr(dataset, part)
        assert torch.equal(images.pixels, images_of(part))
        assert torch.equal(images.labels, labels_of(part))


@pytest.mark.parametrize(
    ("name", "layout"),
    [("camvid", "camvid"), ("mask_folders", "inner"), ("mask_folders", "outer"), ("mask_folders", "ade")],
)
def test_the_parts_of_each_layout_are_read(tmp_path: Path, name: str, layout: str):
    config = DataConfig(name=name, root=written(tmp_path, layout))  # type: ignore[arg-type]
    dataset = load(config)
    assert_is_written(dataset)
    assert dataset.class_names == (CAMVID_NAMES if name == "camvid" else ("0", "1", "2"))
    assert (config.task, dataset.task, dataset.flip_ok) == ("segmentation",) * 2 + (True,)
    check_dataset(config)


def test_camvid_has_eleven_classes_and_two_void_values(tmp_path: Path):
    written(tmp_path, "camvid")
    values = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH) % 12
    as_mask(values).save(tmp_path / "trainannot" / "000.png")
    dataset = load(DataConfig(name="camvid", root=tmp_path))
    assert torch.equal(dataset.train.labels[0].long(), values.masked_fill(values == 11, -1))
    assert dataset.num_classes == 11
    with pytest.raises(InputError, match=r"highest value of .*000\.png is 11; accepted: less than 11, the number of"):
        load(DataConfig(name="camvid", root=tmp_path, ignore_index=(255,)))


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_hold_class_numbers_in_all_grey_and_palette_modes(tmp_path: Path, mode: str):
    assert_is_written(load(DataConfig(name="mask_folders", root=written(tmp_path, mode=mode))))


def grey_of_four_bits(values: Tensor) -> bytes:
    """Return a PNG file of 4 bits per pixel, whose values Pillow multiplies by 17."""
    file = io.BytesIO()
    as_mask(values, "P").save(file, "PNG", bits=4)
    data = bytearray(file.getvalue())
    data[25] = 0  # colour type: grey instead of palette
    place = data.index(b"PLTE") - 4
    del data[place : place + 12 + int.from_bytes(data[place : place + 4], "big")]
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_grey_of_four_bits_and_masks_of_one_bit_hold_class_numbers(tmp_path: Path):
    written(tmp_path)
    values = values_of("train")[0].clamp(max=2)
    path = tmp_path / "train" / "masks" / "000.png"
    path.write_bytes(grey_of_four_bits(values))
    as_mask(values % 2, "1").save(path.with_stem("001"))
    labels = load(DataConfig(name="mask_folders", root=tmp_path)).train.labels
    assert torch.equal(labels[0].long(), values)
    assert torch.equal(labels[1].long(), values % 2)


def test_colour_masks_are_read_with_a_table(tmp_path: Path):
    written(tmp_path)
    (tmp_path / "class_dict.csv").write_text(TABLE)
    colours = torch.tensor([[128, 64, 128], [0, 0, 255], [10, 200, 0], [0, 0, 0]], dtype=torch.uint8)
    for part in COUNTS:
        values = values_of(part).where(values_of(part) < 255, 3)
        for row, mask in enumerate(colours[values]):
            Image.fromarray(mask.numpy()).save(tmp_path / part / "masks" / f"{row:03d}.png")
    whole = load(DataConfig(name="mask_folders", root=tmp_path))
    assert whole.class_names == ("road", "sky", "tree", "void")
    assert any("counts as a class; with 3 in data.ignore_index it is void" in note for note in whole.notes)
    dataset = load(DataConfig(name="mask_folders", root=tmp_path, ignore_index=(3,)))
    assert dataset.class_names == ("road", "sky", "tree")
    assert dataset.notes == ()
    assert_is_written(dataset)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9, np.uint8)).save(tmp_path / "val" / "masks" / "001.png")
    with pytest.raises(InputError, match=r"colour of .*val/masks/001\.png in row 0, column 0 is \(9, 9, 9\); accepted"):
        load(DataConfig(name="mask_folders", root=tmp_path))
    border = (
        r"the 4 classes in .*class_dict\.csv; a line for void in it, whose number \(0 for the first class\) is in da"
    )
    with pytest.raises(InputError, match=border):
        load(DataConfig(name="mask_folders", root=tmp_path))
    (tmp_path / "class_dict.csv").write_text(f"{TABLE.rstrip()}\nborder,9,9,9\n")
    bordered = load(DataConfig(name="mask_folders", root=tmp_path, ignore_index=(3, 4)))
    assert bordered.class_names == ("road", "sky", "tree")
    assert bordered.val is not None
    assert len(bordered.val) == COUNTS["val"] - 1  # the image whose mask is a border everywhere


def test_black_and_white_masks_need_a_table_of_both(tmp_path: Path):
    written(tmp_path)
    for part in COUNTS:
        for row, mask in enumerate(values_of(part) % 2):
            as_mask(mask * 255).save(tmp_path / part / "masks" / f"{row:03d}.png")
    with pytest.raises(InputError, match=r"number of classes with pixels in mask_folders is 1; .* class_dict\.csv"):
        load(DataConfig(name="mask_folders", root=tmp_path))
    (tmp_path / "classes.txt").write_text("ground, 0, 0, 0\nhouse, 255, 255, 255\n")
    dataset = load(DataConfig(name="mask_folders", root=tmp_path))
    assert torch.equal(dataset.test.labels.long(), values_of("test") % 2)


def test_void_values_below_the_classes_leave_the_others_in_order(tmp_path: Path):
    root = written(tmp_path)
    numbered = load(DataConfig(name="mask_folders", root=root, ignore_index=(1, 255)))
    assert numbered.class_names == ("0", "2")
    expected = labels_of("val")
    expected = torch.where(expected == 2, 1, torch.where(expected == 1, -1, expected))
    assert numbered.val is not None
    assert torch.equal(numbered.val.labels, expected)
    (root / "classes.txt").write_text("road\nnothing\ntree\n")
    assert load(DataConfig(name="mask_folders", root=root, ignore_index=(1, 255))).class_names == ("road", "tree")


def test_a_note_says_that_255_counts_as_a_class_if_other_void_values_are_given(tmp_path: Path):
    root = written(tmp_path)
    note = "value 255 of the masks, usually void, counts as a class, because data.ignore_index is {}; give "
    for given in ("1", "1 300"):
        void = tuple(map(int, given.split()))
        dataset = load(DataConfig(name="mask_folders", root=root, ignore_index=void))
        assert note.format(given) + f"--data.ignore_index {given} 255 to leave it out" in dataset.notes
        assert dataset.num_classes == 255
        assert dataset.class_names[-1] == "255"
    for void in (None, (255,), (1, 255)):
        dataset = load(DataConfig(name="mask_folders", root=root, ignore_index=void))
        assert not any("255" in note for note in dataset.notes)
    (root / "classes.txt").write_text("\n".join(f"class {number}" for number in range(256)))
    named = load(DataConfig(name="mask_folders", root=root, ignore_index=(1,)))
    assert not any("value 255" in note for note in named.notes)


def test_a_void_value_that_no_mask_has_adds_no_class(tmp_path: Path):
    root = written(tmp_path)
    for part in COUNTS:
        for row, values in enumerate(values_of(part)):
            as_mask(values.where(values < 255, 0)).save(root / part / "masks" / f"{row:03d}.png")
    dataset = load(DataConfig(name="mask_folders", root=root, ignore_index=(300,)))
    assert dataset.class_names == ("0", "1", "2")
    assert not any("void" in note for note in dataset.notes)


@pytest.mark.parametrize("size", [4, (3, 4), (9, 16)])
def test_images_are_smoothed_and_masks_are_not(tmp_path: Path, size):
    dataset = load(build(DataConfig, {"name": "mask_folders", "root": str(written(tmp_path)), "size": size}, "data"))
    height, width = (size, size) if isinstance(size, int) else size
    assert torch.equal(dataset.train.pixels, resize(images_of("train"), size))
    rows = (2 * torch.arange(height) + 1) * HEIGHT // (2 * height)
    columns = (2 * torch.arange(width) + 1) * WIDTH // (2 * width)
    assert torch.equal(dataset.train.labels, labels_of("train")[:, rows][:, :, columns])


def test_files_of_several_sizes_need_a_size(tmp_path: Path):
    root = written(tmp_path)
    as_image(random_pixels(1, side=12)[0]).save(root / "train" / "images" / "003.png")
    as_mask(torch.zeros(12, 12, dtype=torch.int64)).save(root / "train" / "masks" / "003.png")
    with pytest.raises(InputError, match=r"height and width of .*003\.png is \(12, 12\); accepted: \(6, 8\) as in the"):
        load(DataConfig(name="mask_folders", root=root))
    assert load(DataConfig(name="mask_folders", root=root, size=(4, 6))).train.labels.shape == (8, 4, 6)


def test_masks_have_the_size_of_the_upright_image(tmp_path: Path):
    root = written(tmp_path)
    tag = Image.Exif()
    tag[0x0112] = 6
    image = root / "train" / "images" / "002.png"
    as_image(images_of("train")[2].rot90(1, (1, 2))).save(image, exif=tag)
    assert_is_written(load(DataConfig(name="mask_folders", root=root)))
    as_mask(values_of("train")[2].rot90(1)).save(root / "train" / "masks" / "002.png")
    match = r"width of .*masks/002\.png is \(8, 6\); accepted: \(6, 8\), as its image .*002\.png, which is rotated by"
    with pytest.raises(InputError, match=match):
        load(DataConfig(name="mask_folders", root=root))
    as_mask(values_of("train")[2].rot90(1)).save(root / "train" / "masks" / "002.png", exif=tag)
    assert_is_written(load(DataConfig(name="mask_folders", root=root)))


def test_litter_is_ignored_and_other_files_are_noted(tmp_path: Path):
    root = written(tmp_path)
    for name in ("._000.png", "Thumbs.db", ".DS_Store"):
        (root / "train" / "images" / name).write_bytes(b"litter")
        (root / "train" / "masks" / name).write_bytes(b"litter")
    (root / "train" / "masks" / "readme.md").write_text("text")
    dataset = load(DataConfig(name="mask_folders", root=root))
    assert_is_written(dataset)
    (note,) = dataset.notes
    assert note.startswith(f"ignored in {root / 'train' / 'masks'}: 1 .md (")


def test_validation_images_are_the_test_set_if_there_is_no_other(tmp_path: Path):
    dataset = load(DataConfig(name="mask_folders", root=written(tmp_path / "a", parts=("train", "val"))))
    assert dataset.val is None
    assert torch.equal(dataset.test.labels, labels_of("val"))
    assert dataset.notes == (f"{tmp_path / 'a' / 'val' / 'images'} is the test set, because there is no other",)
    alone = load(DataConfig(name="mask_folders", root=written(tmp_path / "b", parts=("train",))))
    assert (len(alone.train), len(alone.test)) == (7, 1)
    assert "no test images and no validation images: 1 images held out" in alone.notes[0]


def test_images_that_are_void_everywhere_are_left_out(tmp_path: Path):
    root = written(tmp_path)
    as_mask(torch.full((HEIGHT, WIDTH), 255)).save(root / "test" / "masks" / "001.png")
    dataset = load(DataConfig(name="mask_folders", root=root))
    assert torch.equal(dataset.test.pixels, images_of("test")[[0, 2, 3]])
    assert dataset.notes == (
        f"1 of 4 images in {root / 'test' / 'images'} are left out: none of their pixels has a class",
    )


def masks(root: Path) -> Path:
    return root / "train" / "masks"


def nest(path: Path) -> None:
    """Move a numbered file into a sub-folder of its own."""
    (path.parent / f"a{int(path.stem)}").mkdir()
    path.rename(path.parent / f"a{int(path.stem)}" / path.name)


REFUSALS = {
    "missing mask": (
        lambda root: (masks(root) / "003.png").unlink(),
        r"list of images without a mask \(1 of 8\) is \['.*train/images/003\.png'\]; accepted: mask files in "
        r".*train/masks",
    ),
    "missing image": (
        lambda root: (root / "train" / "images" / "003.png").unlink(),
        r"list of masks without an image \(1 of 8\) is \['.*train/masks/003\.png'\]",
    ),
    "other size": (
        lambda root: as_mask(torch.zeros(4, 5)).save(masks(root) / "002.png"),
        r"height and width of .*train/masks/002\.png is \(4, 5\); accepted: \(6, 8\), as its image .*images/002\.png$",
    ),
    "unreadable": (lambda root: (masks(root) / "002.png").write_bytes(b"no image"), r"cannot read .*masks/002\.png: "),
    "colours": (
        lambda root: as_image(random_pixels(1)[0]).save(masks(root) / "002.png"),
        r"mode of .*masks/002\.png is 'RGB'; accepted: one class number per pixel.*class_dict\.csv in .*name,r,g,b",
    ),
    "floats": (
        lambda root: Image.new("F", (WIDTH, HEIGHT)).save(masks(root) / "002.png", "TIFF"),
        r"mode of .*masks/002\.png is 'F'; accepted: one class number per pixel",
    ),
    "lossy": (
        lambda root: as_mask(values_of("train")[2]).save(masks(root) / "002.png", "JPEG"),
        r"format of .*masks/002\.png is 'JPEG'; accepted: PNG, or another lossless format",
    ),
    "frames": (
        lambda root: as_mask(values_of("train")[2], "P").save(
            masks(root) / "002.png", "GIF", save_all=True, append_images=[as_mask(values_of("train")[3], "P")]
        ),
        r"number of frames of .*masks/002\.png is 2",
    ),
    "beyond train": (
        lambda root: as_mask(torch.full((HEIGHT, WIDTH), 3)).save(root / "test" / "masks" / "001.png"),
        r"highest value of .*test/masks/001\.png is 3; accepted: less than 3, the number of classes in the train masks",
    ),
    "instance numbers": (
        lambda root: as_mask(torch.full((HEIGHT, WIDTH), 26_001), "I;16").save(masks(root) / "001.png"),
        r"highest value of .*masks/001\.png is 26001; accepted: less than 1000, or names of the classes in class_dict",
    ),
    "void alone": (
        lambda root: [as_mask(torch.full((HEIGHT, WIDTH), 255)).save(path) for path in masks(root).iterdir()],
        r"number of images in .*train/images with a labelled pixel is 0; accepted: 1 or more: all is void",
    ),
    "beyond the names": (
        lambda root: (root / "classes.txt").write_text("road\nsky\n"),
        r"highest value of .*train/masks/000\.png is 2; accepted: less than 2, the number of classes in .*classes\.txt",
    ),
    "no masks": (lambda root: masks(root).rename(root / "labels"), r"folder of masks is '.*train/masks'"),
    "no images": (
        lambda root: [path.unlink() for path in (root / "val" / "images").iterdir()],
        r"number of image files in .*val/images is 0; accepted: 1 or more, with a suffix of [^:]*\.pnm$",
    ),
    "nested images": (
        lambda root: [nest(path) for path in sorted((root / "train" / "images").iterdir())],
        r"train/images is 0; accepted: 1 or more, .*\.pnm, directly in the folder: sub-folders \(a0, a1, a2, a3, a4, "
        r"\.\.\.\) are not read$",
    ),
    "two suffixes": (
        lambda root: as_mask(values_of("train")[1]).save(masks(root) / "001.bmp"),
        r"files in .*train/masks that differ only in the suffix is \['001\.bmp', '001\.png'\]; accepted: one of them",
    ),
    "two layouts": (lambda root: written(root, "outer"), r"folders of train images in .* is \[.*\]; accepted: one"),
    "no train": (lambda root: (root / "train").rename(root / "other"), r"data\.root of mask_folders is .*train/images"),
    "two tables": (
        lambda root: [(root / name).write_text(TABLE) for name in ("classes.txt", "class_dict.csv")],
        r"files with classes in .* is \['class_dict\.csv', 'classes\.txt'\]; accepted: one of them",
    ),
    "no colours": (
        lambda root: (root / "class_dict.csv").write_text("road\nsky\ntree\n"),
        r"line of .*class_dict\.csv is 'road'; accepted: name,r,g,b in each line",
    ),
    "mixed lines": (
        lambda root: (root / "classes.txt").write_text("road,1,2,3\nsky\n"),
        r"line of .*classes\.txt is 'sky'; accepted: name,r,g,b in each line, or a name in each line",
    ),
    "equal colours": (
        lambda root: (root / "classes.txt").write_text("road,1,2,3\nsky,1,2,3\n"),
        r"colour in .*classes\.txt is \(1, 2, 3\)",
    ),
    "large colour": (lambda root: (root / "classes.txt").write_text("road,1,2,256\nsky,1,2,3\n"), r"is \(1, 2, 256\)"),
    "equal names": (
        lambda root: (root / "classes.txt").write_text("road\nroad\n"),
        r"name of two classes in",
    ),
    "no names": (lambda root: (root / "classes.txt").write_text("\n"), r"number of classes in .*classes\.txt is 0"),
    "no text": (lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe\xfd"), r"cannot be read as text"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, name: str):
    change, problem = REFUSALS[name]
    change(written(tmp_path))
    with pytest.raises(InputError, match=problem):
        load(DataConfig(name="mask_folders", root=tmp_path))


def test_camvid_without_its_folders_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.root of camvid is .*; accepted: a folder with train and trainannot"):
        load(DataConfig(name="camvid", root=tmp_path))
    as_image(random_pixels(1)[0]).save(written(tmp_path, "camvid") / "trainannot" / "001.png")
    with pytest.raises(InputError, match=r"mode of .*001\.png is 'RGB'; accepted: one class .* 16-bit grey$"):
        load(DataConfig(name="camvid", root=tmp_path))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"name": "digits", "ignore_index": (1,)},
            r"data\.ignore_index of digits is \(1,\); accepted: none: only",
        ),
        ({"name": "mask_folders", "ignore_index": (-1,)}, r"data\.ignore_index is \(-1,\); accepted: integers from 0"),
        ({"name": "mask_folders", "train_file": "a"}, r"data\.train_file, data\.test_file of mask_folders"),
    ],
)
def test_fields_of_other_data_sets_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        DataConfig(**fields)


def encoded(image: Image.Image) -> dict[str, object]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_pairs(path: Path, part: str, columns: tuple[str, str] = ("image", "label")) -> Path:
    images = [encoded(as_image(image)) for image in images_of(part)]
    files = [encoded(as_mask(mask, "P")) for mask in values_of(part)]
    pq.write_table(pa.table(dict(zip(columns, (images, files), strict=True))), path)
    return path


@pytest.mark.parametrize("columns", [("image", "mask"), ("img", "annotation"), ("pixel_values", "label")])
def test_parquet_files_hold_images_and_masks(tmp_path: Path, columns: tuple[str, str]):
    write_pairs(tmp_path / "train-00000-of-00001.parquet", "train", columns)
    write_pairs(tmp_path / "validation.parquet", "val", columns)
    config = DataConfig(name="parquet_masks", root=tmp_path)
    dataset = load(config)
    assert torch.equal(dataset.train.pixels, images_of("train"))
    assert torch.equal(dataset.train.labels, labels_of("train"))
    assert torch.equal(dataset.test.labels, labels_of("val"))
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    assert load(config).class_names == ("road", "sky", "tree")
    (tmp_path / "validation.parquet").unlink()
    assert len(load(config).test) == 1


def test_parquet_files_without_masks_are_refused(tmp_path: Path):
    config = DataConfig(name="parquet_masks", root=tmp_path)
    with pytest.raises(InputError, match=r"data\.root is .*; accepted: a folder with train\*\.parquet"):
        load(config)
    path = write_pairs(tmp_path / "train.parquet", "train")
    with pytest.raises(InputError, match=r"column 'label' of .*; masks are read with data\.name parquet_masks"):
        load(DataConfig(name="parquet", root=tmp_path))
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", pa.array(range(8))), path)
    with pytest.raises(InputError, match=r"column 'label' of .* is 'int64'; accepted: binary, or a struct"):
        load(config)
    lacking = pa.array([None, *table.column(1).to_pylist()[1:]], table.schema.field(1).type)
    pq.write_table(table.set_column(1, "mask", lacking), path)
    with pytest.raises(InputError, match=r"mask 0 of .*train\.parquet is None"):
        load(config)
    pq.write_table(table.drop(["label"]), path)
    with pytest.raises(InputError, match=r"columns of .* is \['image'\]; accepted: mask or label or"):
        load(config)
