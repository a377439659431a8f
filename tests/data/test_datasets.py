import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared
from torch import Tensor

from condkd_ray.core.config import build, content_hash, to_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import to_unit
from condkd_ray.data.datasets import CONSTANTS, DataConfig, Dataset, RealImages, load
from data.image_files import random_pixels, write_folder, write_idx, write_parquet


def numbered(count: int, side: int = 8) -> Tensor:
    """Return images (N, 3, H, W) whose pixels encode their index, so no two are equal."""
    numbers = torch.arange(count)
    digits = torch.stack([numbers % 256, numbers // 256, numbers * 37 % 256], 1)
    return digits.to(torch.uint8)[:, :, None, None].expand(-1, -1, side, side).contiguous()


def numbers_of(images: RealImages) -> list[int]:
    corner = images.pixels[:, :2, 0, 0].long()
    return (corner[:, 0] + 256 * corner[:, 1]).tolist()


def parquet_root(root: Path, count: int, *tests: str) -> Path:
    write_parquet(root / "train.parquet", random_pixels(count, seed=9), torch.arange(count) % 10)
    for name in tests:
        write_parquet(root / name, random_pixels(20), torch.arange(20) % 10)
    return root


def test_digits():
    dataset = load(DataConfig())
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (1000, 197, 600)
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert dataset.train.pixels.max() == 255
    assert not dataset.flip_ok
    assert dataset.digest == "aad433889400dc59"
    assert dataset.notes == ()


def test_digits_are_those_of_scikit_learn_once_each():
    from sklearn.datasets import load_digits

    dataset = load(DataConfig())
    assert dataset.val is not None
    parts = [dataset.train, dataset.val, dataset.test]
    ours = torch.cat([part.pixels.flatten(1).long() for part in parts])
    labels = torch.cat([part.labels for part in parts])
    bundle = load_digits()
    theirs = {
        (tuple(round(value * 255 / 16) for value in row), label)
        for row, label in zip(bundle.data.tolist(), bundle.target.tolist(), strict=True)
    }
    assert {(tuple(row), label) for row, label in zip(ours.tolist(), labels.tolist(), strict=True)} == theirs
    assert len(ours) == len(bundle.data)


def test_the_split_depends_on_the_seed():
    first, again, other = load(DataConfig()), load(DataConfig(seed=0)), load(DataConfig(seed=1))
    assert first.digest == again.digest
    assert torch.equal(first.train.pixels, again.train.pixels)
    assert first.digest != other.digest


def test_samples_are_normalised_by_the_constants_of_the_train_images():
    dataset = load(DataConfig())
    samples = dataset.train.samples(dataset.mean, dataset.std)
    assert samples.logits.shape == (1000, 0)
    assert samples.images.mean().abs() < 1e-4
    assert (samples.images.std() - 1).abs() < 1e-3
    pixels = to_unit(samples.images, dataset.mean, dataset.std) * 255
    assert (pixels - dataset.train.pixels).abs().max() < 1e-3


def test_real_images_are_indexed_by_rows():
    dataset = load(DataConfig())
    assert len(dataset.train[:7]) == 7
    assert dataset.train[torch.tensor([3])].labels == dataset.train.labels[3]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(5, 600), fraction=st.floats(0.05, 0.5), seed=st.integers(0, 10))
def test_no_split_overlaps_another(tmp_path_factory: pytest.TempPathFactory, count: int, fraction: float, seed: int):
    root = tmp_path_factory.mktemp("data")
    write_parquet(root / "train.parquet", numbered(count, side=1), torch.arange(count) % 10)
    held_out = count // 5
    val_count = round(fraction * (count - held_out))
    config = DataConfig(name="parquet", root=root, val_fraction=fraction, seed=seed, mean=(0.5,) * 3, std=(0.5,) * 3)
    if val_count == 0:
        with pytest.raises(InputError, match="number of train images"):
            load(config)
        return
    dataset = load(config)
    assert dataset.val is not None
    parts = [numbers_of(part) for part in (dataset.train, dataset.val, dataset.test)]
    assert [len(part) for part in parts] == [count - held_out - val_count, val_count, held_out]
    assert sorted(itertools.chain(*parts)) == list(range(count))


def idx_parts() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (random_pixels(40, 1, 28), torch.arange(40) % 10), (random_pixels(20, 1, 28, seed=1), torch.arange(20) % 10)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_size) for p in [root, *root.rglob("*")]}


def test_idx_files_are_read_zipped_or_not_in_several_folders_without_writing(tmp_path: Path):
    train, test = idx_parts()
    write_idx(tmp_path / "a" / "FashionMNIST" / "raw", train, test, zipped=True)
    write_idx(tmp_path / "b" / "raw", train, test, zipped=False)
    before = listing(tmp_path)
    roots = [tmp_path / "a", tmp_path / "a/FashionMNIST", tmp_path / "a/FashionMNIST/raw", tmp_path / "b"]
    datasets = [load(DataConfig(name="fashion_mnist", root=root)) for root in roots]
    assert listing(tmp_path) == before
    assert len({dataset.digest for dataset in datasets}) == 1
    assert torch.equal(datasets[0].train.pixels, train[0])
    assert torch.equal(datasets[0].test.labels, test[1])
    assert (datasets[0].mean, datasets[0].std) == CONSTANTS["fashion_mnist"]
    assert datasets[0].flip_ok
    mnist = load(DataConfig(name="mnist", root=tmp_path / "b"))
    assert not mnist.flip_ok
    assert mnist.mean == (0.1307,)


def test_missing_idx_files_are_refused_with_the_files_and_folders_searched(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(InputError) as error:
        load(DataConfig(name="mnist", root=tmp_path))
    for part in ("t10k-labels-idx1-ubyte", str(tmp_path / "MNIST" / "raw")):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "class_folders", "parquet"])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_without_permission_is_refused(name: str, mode: int):
    user = os.geteuid()
    with TemporaryDirectory() as folder:
        place = Path(folder) / "closed"
        for inner in ("train", "a"):
            (place / inner).mkdir(parents=True)
        place.chmod(mode)
        Path(folder).chmod(0o755)
        try:
            if user == 0:
                os.seteuid(60_001)
            with pytest.raises(InputError, match=r"data.root.* is '.*closed'; accepted: a folder w"):
                load(DataConfig(name=name, root=place))
        finally:
            os.seteuid(user)
            place.chmod(0o700)


def test_one_test_file_is_the_test_set(tmp_path: Path):
    dataset = load(DataConfig(name="parquet", root=parquet_root(tmp_path, 30, "test.parquet")))
    assert (len(dataset.train), len(dataset.test), dataset.val) == (30, 20, None)
    assert dataset.notes == ()
    assert torch.equal(dataset.test.pixels, random_pixels(20))


def test_with_several_test_files_test_images_are_held_out_of_train(tmp_path: Path):
    root = parquet_root(tmp_path, 50, "test_a.parquet", "test_b.parquet")
    dataset = load(DataConfig(name="parquet", root=root, seed=3))
    assert (len(dataset.train), len(dataset.test)) == (40, 10)
    assert dataset.notes == (
        "several test files (test_a.parquet, test_b.parquet) and none named: 10 images held out of train by "
        "data seed 3; name one with --test-file",
    )
    named = load(DataConfig(name="parquet", root=root, test_file="test_b.parquet"))
    assert (len(named.train), len(named.test), named.notes) == (50, 20, ())


def test_from_50_000_images_on_10_000_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("condkd_ray.data.datasets.HELD_OUT_FROM", 60)
    monkeypatch.setattr("condkd_ray.data.datasets.HELD_OUT", 25)
    dataset = load(DataConfig(name="parquet", root=parquet_root(tmp_path, 60)))
    assert (len(dataset.train), len(dataset.test)) == (35, 25)
    assert dataset.notes[0].startswith("no test file: 25 images held out of train")


def test_known_names_read_parquet_with_their_constants(tmp_path: Path):
    dataset = load(DataConfig(name="cifar10", root=parquet_root(tmp_path, 30, "test.parquet")))
    assert (dataset.mean, dataset.std) == CONSTANTS["cifar10"]
    assert dataset.flip_ok


def test_missing_torchvision_files_are_refused(tmp_path: Path):
    for name in ("cifar10", "cifar100", "svhn"):
        with pytest.raises(InputError, match="torchvision's layout or Parquet"):
            load(DataConfig(name=name, root=tmp_path))  # type: ignore[arg-type]


def test_image_folder(tmp_path: Path):
    names = ["ant", "bee", "cow"]
    write_folder(tmp_path / "train", random_pixels(30), torch.arange(30) % 3, names)
    alone = load(DataConfig(name="image_folder", root=tmp_path))
    assert (len(alone.train), len(alone.test), alone.class_names) == (24, 6, tuple(names))
    assert alone.notes == ("neither test/ nor val/: 6 images held out of train by data seed 0",)
    write_folder(tmp_path / "val", random_pixels(6, seed=1), torch.arange(6) % 3, names)
    dataset = load(DataConfig(name="image_folder", root=tmp_path, size=4))
    assert (len(dataset.train), len(dataset.test)) == (30, 6)
    assert dataset.image_shape == (3, 4, 4)
    assert "val/ is the test set" in dataset.notes[0]
    write_folder(tmp_path / "test", random_pixels(3, seed=2), torch.arange(3), ["ant", "bee", "dog"])
    with pytest.raises(InputError, match=r"classes of the test images is \('ant', 'bee', 'dog'\)"):
        load(DataConfig(name="image_folder", root=tmp_path))


def test_computed_constants_are_those_of_the_train_images(tmp_path: Path):
    pixels = random_pixels(200)
    write_parquet(tmp_path / "train.parquet", pixels, torch.arange(200) % 10)
    dataset = load(DataConfig(name="parquet", root=tmp_path))
    kept = dataset.train.pixels.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), kept.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(dataset.std).double(), kept.std(1, correction=0), atol=1e-6, rtol=0)


def test_settings_of_the_user_replace_the_known_ones(tmp_path: Path):
    root = parquet_root(tmp_path, 30, "test.parquet")
    config = DataConfig(name="cifar10", root=root, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), flip_ok=False, size=16)
    dataset = load(config)
    assert (dataset.mean, dataset.std, dataset.flip_ok) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), False)
    assert dataset.image_shape == (3, 16, 16)
    with pytest.raises(InputError, match="3 values each"):
        load(DataConfig(name="cifar10", root=root, mean=(0.1,), std=(0.4,)))


def test_test_images_of_other_classes_or_shape_are_refused(tmp_path: Path):
    root = parquet_root(tmp_path, 30)
    write_parquet(tmp_path / "test.parquet", random_pixels(3), torch.tensor([0, 1, 10]))
    with pytest.raises(InputError, match=r"\[10\]"):
        load(DataConfig(name="parquet", root=root))
    write_parquet(tmp_path / "test.parquet", random_pixels(3, side=9), torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="shape of the test images"):
        load(DataConfig(name="parquet", root=root))


def check_normalised(dataset: Dataset) -> None:
    samples = dataset.train.samples(dataset.mean, dataset.std)
    # The constants are of all train images; the mean of a random 80 % of them deviates by about 0.0013.
    assert samples.images.mean().abs() < 5e-3
    assert 0.9 < samples.images.std() < 1.3


def test_real_fashion_mnist_is_read_in_place():
    root = shared("FashionMNIST")
    before = listing(root)
    dataset = load(DataConfig(name="fashion_mnist", root=root.parent, val_fraction=0.1))
    assert listing(root) == before
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (54_000, 6_000, 10_000)
    check_normalised(dataset)


@pytest.mark.slow
def test_real_cifar10_holds_out_its_own_test_images():
    dataset = load(DataConfig(name="cifar10", root=shared("cifar10")))
    assert (len(dataset.train), len(dataset.test)) == (40_000, 10_000)
    assert "10 000 images held out" in dataset.notes[0]
    check_normalised(dataset)


def test_a_validation_file_is_the_test_set_if_there_is_no_test_file(tmp_path: Path):
    dataset = load(DataConfig(name="parquet", root=parquet_root(tmp_path, 30, "valid-00000-of-00001.parquet")))
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    assert dataset.notes == ("valid-00000-of-00001.parquet is used as the test set, because there is no test file",)


@pytest.mark.parametrize("name", ["parquet", "cifar10"])
def test_a_converted_data_set_is_read(tmp_path: Path, name):
    root = tmp_path / "plain_text"
    write_parquet(root / "train" / "0000.parquet", random_pixels(30), torch.arange(30) % 10, columns=("img", "label"))
    write_parquet(root / "test" / "0000.parquet", random_pixels(20, seed=1), torch.arange(20) % 10)
    dataset = load(DataConfig(name=name, root=tmp_path))
    assert (len(dataset.train), len(dataset.test), dataset.notes) == (30, 20, ())


def test_a_test_set_without_labels_is_refused(tmp_path: Path):
    root = parquet_root(tmp_path, 30)
    write_parquet(tmp_path / "test.parquet", random_pixels(20), torch.full((20,), -1))
    with pytest.raises(InputError, match=r"lowest of the labels in .*test\.parquet is -1; .*\(20 of 20 are below\)"):
        load(DataConfig(name="parquet", root=root))


def test_classes_without_train_images_give_a_note(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", random_pixels(30), torch.tensor([1, 3, 4] * 10))
    write_parquet(tmp_path / "test.parquet", random_pixels(3, seed=1), torch.tensor([1, 3, 4]))
    dataset = load(DataConfig(name="parquet", root=tmp_path))
    assert dataset.num_classes == 5
    assert dataset.notes == ("2 of 5 classes have no train image, so the student cannot learn them (0, 2)",)


def test_classes_of_one_image_give_a_note(tmp_path: Path):
    names = ["ant", "bee", "cow"]
    for seed, split in enumerate(("train", "test")):
        write_folder(tmp_path / split, random_pixels(5, seed=seed), torch.tensor([0, 0, 1, 1, 2]), names)
    notes = load(DataConfig(name="image_folder", root=tmp_path)).notes
    assert notes == ("1 of 3 classes have one train image, which goes to the proxy set (cow)",)


def test_classes_of_train_and_test_are_matched_by_name(tmp_path: Path):
    for seed, split in enumerate(("train", "test")):
        write_folder(tmp_path / split, random_pixels(6, seed=seed), torch.arange(6) % 3, ["ant", "bee", "cow"])
    plain = load(DataConfig(name="image_folder", root=tmp_path))
    (tmp_path / "train" / "classes.txt").write_text("cow\nant\nbee\n", encoding="utf-8")
    dataset = load(DataConfig(name="image_folder", root=tmp_path))
    assert dataset.class_names == ("cow", "ant", "bee")
    assert torch.equal(dataset.test.pixels, plain.test.pixels)
    assert dataset.test.labels.tolist() == [(label + 1) % 3 for label in plain.test.labels.tolist()]
    assert dataset.notes == (
        "test images list the classes in another order than train images: classes are matched by name",
    )


def test_numbered_class_folders_are_matched_by_number_if_test_lacks_some(tmp_path: Path):
    pixels, labels = random_pixels(30), torch.arange(30) % 3
    write_folder(tmp_path / "train", pixels, labels, ["0", "1", "2"])
    kept = labels != 1
    write_folder(tmp_path / "test", 255 - pixels[kept], labels[kept], ["0", "1", "2"])
    dataset = load(DataConfig(name="image_folder", root=tmp_path))
    assert sorted(dataset.test.labels.tolist()) == [0] * 10 + [2] * 10
    assert not any("order" in note for note in dataset.notes)


def test_a_test_folder_of_another_number_is_refused(tmp_path: Path):
    write_folder(tmp_path / "train", random_pixels(30), torch.arange(30) % 3, ["1", "2", "3"])
    write_folder(tmp_path / "test", random_pixels(9), torch.arange(9) % 3, ["1", "2", "7"])
    with pytest.raises(InputError, match=r"test classes without train images is \[7\]"):
        load(DataConfig(name="image_folder", root=tmp_path))


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_one_class_is_refused(tmp_path: Path, names):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", random_pixels(9), torch.zeros(9, dtype=torch.int64), names=names)
    with pytest.raises(InputError, match=r"number of classes with images in parquet is 1; accepted: 2 or more"):
        load(DataConfig(name="parquet", root=tmp_path))


def written(root: Path, train: Tensor, test: Tensor, *, other: bool = False) -> Path:
    """Write Parquet files of these images; with `other`, the labels of equal test and train images differ."""
    write_parquet(root / "train.parquet", train, torch.arange(len(train)) % 5)
    write_parquet(root / "test.parquet", test, (torch.arange(len(test)) + other) % 5)
    return root


def test_test_images_that_are_train_images_give_a_note(tmp_path: Path):
    train, test = random_pixels(40), random_pixels(60)[30:]
    some = load(DataConfig(name="parquet", root=written(tmp_path, train, test)))
    assert some.notes == (
        "10 of 30 test images are train images, pixel for pixel: accuracy on them measures memorisation",
    )
    whole = load(DataConfig(name="parquet", root=written(tmp_path, train, train), val_fraction=0.25))
    assert whole.notes[0].startswith("ALL 40 test images are train images")
    apart = load(DataConfig(name="parquet", root=written(tmp_path, train, random_pixels(60)[40:])))
    assert apart.notes == ()


def test_copies_with_another_label_give_a_note(tmp_path: Path):
    notes = load(
        DataConfig(name="parquet", root=written(tmp_path, random_pixels(40), random_pixels(10), other=True))
    ).notes
    assert notes[1] == "20 of 50 images have an identical copy with another label: one label is wrong"


@settings(max_examples=25, deadline=None)
@given(count=st.integers(60, 300), different=st.floats(0.7, 1), fraction=st.floats(0.2, 0.5), seed=st.integers(0, 10))
def test_copies_are_on_one_side_of_each_split(
    tmp_path_factory: pytest.TempPathFactory, count: int, different: float, fraction: float, seed: int
):
    root, rng = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(seed)
    rows = torch.randint(max(20, int(count * different)), (count,), generator=rng)
    write_parquet(root / "train.parquet", numbered(1000, side=1)[rows], torch.arange(count) % 10)
    config = DataConfig(name="parquet", root=root, val_fraction=fraction, seed=seed, mean=(0.5,) * 3, std=(0.5,) * 3)
    dataset = load(config)
    assert dataset.val is not None
    parts = [numbers_of(part) for part in (dataset.train, dataset.val, dataset.test)]
    assert sorted(itertools.chain(*parts)) == sorted(rows.tolist())
    assert sum(len(set(part)) for part in parts) == len(set(rows.tolist()))
    copied = count - len(set(rows.tolist()))
    assert any(note.startswith(f"{copied} of {count} images are copies") for note in dataset.notes) == (copied > 0)
    assert dataset.notes[0].startswith(f"no test file: {len(dataset.test)} images held out")
    most = int(rows.bincount().max())
    assert abs(len(dataset.test) - count // 5) < most
    assert abs(len(dataset.val) - round(fraction * (count - count // 5))) < 2 * most


def test_a_split_without_copies_is_that_of_earlier_versions(tmp_path: Path):
    root = parquet_root(tmp_path, 60)
    write_parquet(root / "train.parquet", random_pixels(60), torch.arange(60) % 10)
    found = [load(DataConfig(name="parquet", root=root, seed=seed, val_fraction=0.2)).digest for seed in (0, 1)]
    assert found == ["939791e5b387a9ff", "49918c9960752f2b"]


def test_images_that_are_all_copies_cannot_be_split(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", random_pixels(2)[[0, 1] * 10], torch.arange(20) % 10)
    with pytest.raises(InputError, match=r"number of different train images is 2; .*copies stay in one part"):
        load(DataConfig(name="parquet", root=tmp_path, val_fraction=0.3))


def test_a_size_is_one_side_or_height_and_width(tmp_path: Path):
    root = write_folder(tmp_path, random_pixels(12), torch.arange(12) % 2, ["a", "b"])
    tree = {"name": "class_folders", "root": str(root)}
    sizes = {4: (3, 4, 4), (4, 6): (3, 4, 6)}
    for size, shape in sizes.items():
        config = build(DataConfig, {**tree, "size": to_tree(size)}, "data")
        assert config.size == size
        assert load(config).image_shape == shape
    assert load(DataConfig(size=(12, 6))).image_shape == (1, 12, 6)
    assert load(DataConfig(size=16)).digest == load(DataConfig(size=(16, 16))).digest


def test_the_identity_of_a_single_side_is_that_of_earlier_versions():
    assert content_hash(DataConfig(size=64)) == "7be2973bafdbf36e"
