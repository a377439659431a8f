import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.data.readers import read_folder, read_halves
from data.image_files import as_image, random_pixels, write_folder

NAMES = ["ant", "bee", "cow"]


def test_a_folder_is_read_class_by_class(tmp_path: Path):
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
    with pytest.raises(InputError, match="one sub-folder per class"):
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


def test_the_split_depends_on_the_data_seed_and_the_digest_on_the_split(tmp_path: Path):
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


def test_all_images_are_read_and_ignored_files_are_noted(tmp_path: Path):
    for place, suffix in enumerate(("png", "TIF", "pgm", "gif", "ppm")):
        (tmp_path / "ab"[place % 2]).mkdir(exist_ok=True)
        as_image(random_pixels(1, 1)[0]).save(tmp_path / "ab"[place % 2] / f"{place}.{suffix}")
    assert read_folder(tmp_path).notes == ()
    for name in ("a/1.HEIC", "a/2.heic", "b/labels.txt", "b/Makefile", "c.png", "readme.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "deep").mkdir()
    raw = read_folder(tmp_path)
    assert raw.labels.tolist() == [0, 0, 0, 1, 1]
    assert raw.notes == (
        f"ignored in {tmp_path}: 2 .heic, 1 .png, 1 .txt, 1 folders, 1 without a suffix "
        "(images are read only from class folders, not from beside or below them)",
    )


def test_files_and_folders_of_operating_systems_are_ignored(tmp_path: Path):
    root = folder(tmp_path, [3, 3, 3])
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
        (root / name).mkdir()
        as_image(random_pixels(1)[0]).save(root / name / "0.png")
        (root / "ant" / name).mkdir()
    for name in ("._00000.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "ant" / name).write_bytes(b"\0\5\x16\7")
        (root / name).write_bytes(b"\0")
    raw = read_folder(root)
    assert (raw.class_names, len(raw), raw.notes) == (tuple(NAMES), 9, ())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "cp850", "mac_roman"])
def test_classes_txt_is_read_in_common_encodings(tmp_path: Path, encoding: str):
    write_folder(tmp_path, random_pixels(6), torch.arange(6) % 2, ["caf\u00e9", "na\u00efve"])
    (tmp_path / "classes.txt").write_bytes("na\u00efve\r\ncaf\u00e9\r\n".encode(encoding))
    raw = read_folder(tmp_path)
    assert raw.class_names == ("na\u00efve", "caf\u00e9")
    assert torch.equal(raw.pixels, random_pixels(6)[[1, 3, 5, 0, 2, 4]])
    noted = [note.startswith(f"{tmp_path / 'classes.txt'} is read as ") for note in raw.notes]
    assert noted == [True] * (not encoding.startswith("utf"))


def test_classes_txt_in_no_known_encoding_is_refused(tmp_path: Path):
    write_folder(tmp_path, random_pixels(6), torch.arange(6) % 2, ["caf\u00e9", "na\u00efve"])
    (tmp_path / "classes.txt").write_bytes(b"na\xf0ve\ncaf\xf1")
    with pytest.raises(
        InputError, match=r"text of .*classes\.txt is b'na.*accepted: the names of the folders in UTF-8"
    ):
        read_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes("a\nb\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16 without its mark"):
        read_folder(tmp_path)


def test_names_with_composed_and_decomposed_accents_are_equal(tmp_path: Path):
    write_folder(tmp_path, random_pixels(6), torch.arange(6) % 2, ["cafe\u0301", "na\u00efve"])
    (tmp_path / "classes.txt").write_text("nai\u0308ve\ncaf\u00e9\n", encoding="utf-8")
    assert read_folder(tmp_path).class_names == ("na\u00efve", "caf\u00e9")


def test_names_are_read_in_every_locale(tmp_path: Path):
    names = ["caf\u00e9", "na\u00efve"]
    for split in ("train", "test"):
        write_folder(tmp_path / split, random_pixels(6), torch.arange(6) % 2, names)
        (tmp_path / split / "classes.txt").write_text("na\u00efve\ncaf\u00e9\n", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(
        f"# d\u00e9j\u00e0 vu\n{{name: image_folder, root: '{tmp_path}'}}", encoding="utf-8"
    )
    program = (
        "import sys; from pathlib import Path; from condkd_ray.core.config import build, read_tree\n"
        "from condkd_ray.data.datasets import DataConfig, load\n"
        "print(ascii(load(build(DataConfig, read_tree(Path(sys.argv[1])), 'data')).class_names))"
    )
    posix = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", program, str(tmp_path / "a.yaml")]
    output = subprocess.run(command, env=os.environ | posix, capture_output=True, check=True, timeout=100).stdout
    assert ast.literal_eval(output.decode()) == ("na\u00efve", "caf\u00e9")


def test_copies_are_on_one_side_of_the_split(tmp_path: Path):
    images = random_pixels(18)
    images[9:15] = images[:6]  # two copies of six; row 12 is of another class than its original in row 3
    labels = torch.tensor([0, 1, 2] * 6)
    labels[12] = 1
    dataset = load(DataConfig(name="class_folders", root=write_folder(tmp_path, images, labels, NAMES)))
    train, test = ({row.numpy().tobytes() for row in part.pixels} for part in (dataset.train, dataset.test))
    assert (len(train & test), len(train | test), len(dataset.train) + len(dataset.test)) == (0, 12, 18)
    assert "6 of 18 images are copies of others: each is in the same part of the split as its original" in dataset.notes
    assert any(note.startswith("2 of 18 images have an identical copy with another label") for note in dataset.notes)


def test_copies_count_as_one_image(tmp_path: Path):
    root = folder(tmp_path, [4, 4, 4])
    files = sorted((root / "bee").iterdir())
    for file in files[1:3]:
        file.write_bytes(files[0].read_bytes())
    with pytest.raises(InputError, match=r"number of different images of class bee in .* is 2; accepted: 3 or more"):
        read_halves(root, None, 0)


def test_a_split_without_copies_is_that_of_earlier_versions(tmp_path: Path):
    root = folder(tmp_path, [9, 9, 9])
    assert [load(DataConfig(name="class_folders", root=root, seed=seed)).digest for seed in (0, 1)] == [
        "d9214f9e3084498c",
        "b1ac4a02a231d361",
    ]
