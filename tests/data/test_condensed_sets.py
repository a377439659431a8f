"""Formats of condensed sets of other projects, read from synthetic files."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, real_pixels, real_samples
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Samples
from condkd_ray.data.condensed_sets import read_stored, resolve, unpack
from condkd_ray.methods.condensation import Imported
from data.image_files import as_image

SHAPE = (3, 8, 8)


def save(folder: Path, **tensors: object) -> Path:
    """Save each tensor as `name.pt`, and return the path of the last one."""
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder / f"{list(tensors)[-1]}.pt"


def read(path: Path, **fields: object) -> Samples:
    method = Imported(path=path, ipc=1, **fields)  # type: ignore[arg-type]
    return method.read(num_classes=NUM_CLASSES, image_shape=SHAPE, mean=MEAN, std=STD)


@pytest.mark.parametrize("number", ["best", "0", "5000"])
def test_a_pair_of_mtt_is_read(tmp_path: Path, number: str):
    real = real_samples()
    path = save(tmp_path, **{f"labels_{number}": real.labels, f"images_{number}": real.images})
    assert torch.equal(read(path).images, real.images)
    assert torch.equal(read(path).labels, real.labels)
    assert Imported(path=path).source == path.name


def test_the_best_pair_is_read_from_the_folder_of_a_run_of_mtt(tmp_path: Path):
    real = real_samples()
    save(tmp_path, labels_best=real.labels, images_best=real.images, labels_0=real.labels, images_0=0.9 * real.images)
    assert torch.equal(read(tmp_path).images, real.images)
    assert Imported(path=tmp_path).source == "images_best.pt"


def test_a_single_pair_is_read_from_the_folder_of_a_run_of_mtt(tmp_path: Path):
    real = real_samples()
    save(tmp_path, labels_5000=real.labels, images_5000=real.images)
    assert torch.equal(read(tmp_path).images, real.images)
    whitened = torch.randn(real.images.shape, generator=torch.Generator().manual_seed(0))
    save(tmp_path, images_zca_5000=real.images, images_5000=whitened)
    assert torch.equal(read(tmp_path).images, real.images)
    assert Imported(path=tmp_path).source == "images_zca_5000.pt (un-whitened)"


def test_a_folder_of_several_pairs_of_mtt_without_a_best_is_refused(tmp_path: Path):
    real = real_samples()
    save(tmp_path, labels_0=real.labels, images_0=real.images, labels_500=real.labels, images_500=real.images)
    with pytest.raises(InputError, match=r"the path of one of its files \(images_0.pt, images_500.pt\)"):
        read(tmp_path)
    copies = tmp_path / "copies"
    copies.mkdir()
    save(copies, images_zca_1000=real.images, images_zca_500=real.images)
    with pytest.raises(InputError, match=r"the path of one of its files \(images_zca_500.pt, images_zca_1000.pt\)"):
        read(copies)


def test_the_copy_that_is_not_whitened_is_preferred_and_named(tmp_path: Path):
    real = real_samples()
    whitened = torch.randn(real.images.shape, generator=torch.Generator().manual_seed(0))
    path = save(tmp_path, labels_best=real.labels, images_zca_best=real.images, images_best=whitened)
    for given in (path, tmp_path, tmp_path / "images_zca_best.pt"):
        for space in ("auto", "zca"):
            assert torch.equal(read(given, space=space).images, real.images)
        assert Imported(path=given).source == "images_zca_best.pt (un-whitened)"


def test_a_whitened_set_without_its_copy_is_refused(tmp_path: Path):
    real = real_samples()
    path = save(tmp_path, labels_best=real.labels, images_best=real.images)
    for force in (False, True):
        with pytest.raises(InputError, match=r"space of .* is 'zca'; accepted: zca with the un-whitened copy"):
            read(path, space="zca", force=force)


@pytest.mark.parametrize("space", ["normalised", "unit", "uint8"])
def test_a_pair_of_dc_bench_is_read(tmp_path: Path, space: str):
    (pixels, labels), real = real_pixels(), real_samples()
    stored = {"normalised": real.images, "unit": pixels / 255, "uint8": pixels}[space]
    stem = f"CIFAR10_IPC20{'_normalize' if space == 'normalised' else ''}"
    path = save(tmp_path, **{f"{stem}_labels": labels, f"{stem}_images": stored})
    torch.testing.assert_close(read(path).images, real.images, atol=1e-6, rtol=0)
    assert torch.equal(read(path).labels, labels)


def reference_parts(image: Tensor, factor: int) -> list[Tensor]:
    height, width = (side // factor for side in image.shape[1:])
    return [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(factor)
        for column in range(factor)
    ]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_set_of_idc_is_unpacked(tmp_path: Path, factor: int):
    pixels, labels = real_pixels()
    path = save(tmp_path, data=[pixels / 255, labels])
    samples = read(path, factor=factor, space="unit", force=True)
    assert len(samples) == factor**2 * len(labels)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    for place in (0, 7):
        for number, part in enumerate(reference_parts(pixels[place] / 255, factor)):
            whole = F.interpolate(part[None], size=(8, 8), mode="bilinear", align_corners=False)
            found = samples[place * factor**2 + number : place * factor**2 + number + 1]
            torch.testing.assert_close(found.images, (whole - mean) / std, atol=1e-5, rtol=1e-5)
            assert found.labels == labels[place]


def test_the_value_range_is_that_of_the_file_not_of_its_parts(tmp_path: Path):
    """Enlarging the parts turns whole numbers into fractions."""
    pixels, labels = real_pixels()
    path = save(tmp_path, data=[pixels.float(), labels])
    unit = save(tmp_path, unit=[pixels / 255, labels])
    torch.testing.assert_close(read(path, factor=2).images, read(unit, factor=2).images, atol=1e-4, rtol=1e-4)


def test_parts_by_hand():
    image = torch.tensor([[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0], [3.0, 3.0, 4.0, 4.0]])
    parts, labels = unpack(image[None, None], torch.tensor([5]), 2)
    assert [part.unique().tolist() for part in parts] == [[1.0], [2.0], [3.0], [4.0]]
    assert labels.tolist() == [5] * 4


def test_a_factor_that_does_not_divide_is_refused(tmp_path: Path):
    pixels, labels = real_pixels()
    with pytest.raises(InputError, match=r"factor is 3; accepted: a divisor of both of \(8, 8\)"):
        read(save(tmp_path, data=[pixels / 255, labels]), factor=3)
    with pytest.raises(InputError, match="factor is 0; accepted: 1 or more"):
        Imported(path=tmp_path, factor=0)


def test_a_folder_of_sre2l_is_read(tmp_path: Path):
    pixels, labels = real_pixels()
    for place, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (tmp_path / f"new{label:03d}").mkdir(exist_ok=True)
        as_image(image).save(tmp_path / f"new{label:03d}" / f"class{label:03d}_id{place:03d}.jpg", quality=95)
    found = read_stored(tmp_path)
    order = labels.argsort(stable=True)
    assert torch.equal(found.labels, labels[order])
    assert (found.pixels.float() - pixels[order].float()).abs().mean() < 40  # JPEG is lossy


def test_a_bare_tensor_needs_its_labels(tmp_path: Path):
    real = real_samples()
    for name in ("images_best", "CIFAR10_IPC1_images", "syn"):
        with pytest.raises(InputError, match=rf"labels of the bare tensor .*{name}.pt is None; accepted: labels_"):
            read(save(tmp_path, **{name: real.images}))


LABELS = {
    "float32": lambda labels: labels.float(),
    "uint8": lambda labels: labels.to(torch.uint8),
    "a column": lambda labels: labels[:, None],
    "a list": lambda labels: labels.tolist(),
    "a list of floats": lambda labels: labels.double().tolist(),
    "a list of numpy scalars": lambda labels: [np.int64(label) for label in labels.tolist()],
    "one-hot": lambda labels: F.one_hot(labels, NUM_CLASSES),
    "one-hot less 0.1, as KIP's": lambda labels: F.one_hot(labels, NUM_CLASSES).float() - 0.1,
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_are_read_in_all_forms(tmp_path: Path, form: str):
    """For example, labels of DC-BENCH's random and K-means sets are float32."""
    real = real_samples()
    given = LABELS[form](real.labels)
    beside = save(tmp_path, CIFAR10_IPC20_labels=given, CIFAR10_IPC20_images=real.images)
    for path in (
        beside,
        save(tmp_path, data=[real.images, given]),
        save(tmp_path, named={"Y": given, "X": real.images}),
    ):
        found = read_stored(path)
        assert torch.equal(found.labels, real.labels)
        assert not found.soft


def test_the_largest_class_of_soft_labels_is_used(tmp_path: Path):
    real = real_samples()
    logits = 5.0 * F.one_hot(real.labels, NUM_CLASSES) + torch.rand(
        len(real), NUM_CLASSES, generator=torch.Generator().manual_seed(0)
    )
    found = read_stored(save(tmp_path, labels_best=logits, images_best=real.images))
    assert found.soft
    assert torch.equal(found.labels, real.labels)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda labels: torch.zeros(len(labels), 4), r"several largest values in row 0"),
        (lambda labels: labels + 0.5, r"float32, 0.5 to 3.5"),
        (lambda labels: labels * float("nan"), "not all finite"),
        (lambda labels: F.one_hot(labels).float().log() * 0, "not all finite"),
        (lambda labels: labels.float().index_fill(0, torch.tensor([3]), 1e12), "to 1e\\+12"),
        (lambda labels: labels[:-1], r"\(115,\) int64"),
        (lambda labels: ["a"] * len(labels), "a list of other values"),
        (lambda labels: 3, "'int'"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, change: Callable[[Tensor], object], problem: str):
    real = real_samples()
    with pytest.raises(InputError, match=rf"labels .*{problem}.*; accepted: "):
        read_stored(save(tmp_path, labels_best=change(real.labels), images_best=real.images))


def test_channels_last_is_recognised_by_the_teachers_image_shape(tmp_path: Path):
    real = real_samples()
    last = real.images.permute(0, 2, 3, 1)
    assert torch.equal(read(save(tmp_path, data=[last, real.labels])).images, real.images)
    grey = read_stored(save(tmp_path, grey=[real.images[:, 0], real.labels]), image_shape=(1, 8, 8))
    assert torch.equal(grey.pixels, real.images[:, :1])


def test_sets_of_kip_are_read(tmp_path: Path):
    """KIP stores `images` (N, H, W, C) and labels that are one-hot minus 0.1, in one .npz or in two .npy files."""
    real = real_samples()
    images = real.images.permute(0, 2, 3, 1).numpy()
    labels = np.eye(NUM_CLASSES)[real.labels.numpy()] - 0.1
    np.savez(tmp_path / "kip.npz", images=images, labels=labels, steps=3)
    np.savez_compressed(tmp_path / "big_endian.npz", images=images.astype(">f8"), labels=labels)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    for name in ("kip.npz", "big_endian.npz", "images.npy"):
        found = read(tmp_path / name)
        assert torch.equal(found.images, real.images)
        assert torch.equal(found.labels, real.labels)


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_numpy_file_is_run(tmp_path: Path):
    real, made = real_samples(), tmp_path / "made by the pickle"
    trap = np.array([Trap(made)], dtype=object)
    np.save(tmp_path / "images.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "set.npz", images=trap, labels=real.labels.numpy())
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    for name in ("images.npy", "set.npz", "broken.npz"):
        with pytest.raises(InputError, match=rf"cannot read .*{name}: .*; accepted: a numpy file of numbers"):
            read(tmp_path / name)
    assert not made.exists()
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(InputError, match=r"content of .*other.npz is \[\]; accepted: "):
        read(tmp_path / "other.npz")


def test_numbers_of_numpy_are_read_beside_tensors(tmp_path: Path):
    real = real_samples()
    numbers = [np.float64(0.5), np.float32(0.5), np.int64(3), np.int32(3), np.bool_(True)]
    torch.save({"data": [[real.images, real.labels]], "accs": numbers}, tmp_path / "x.pt")
    assert torch.equal(read(tmp_path / "x.pt").images, real.images)


def test_broken_pixels_are_named(tmp_path: Path):
    real = real_samples()
    real.images[[3, 7], 0, 0, 0] = float("nan")
    with pytest.raises(
        InputError, match="is 'not all finite'; accepted: finite values, but images 3, 7 contain others"
    ):
        read(save(tmp_path, data=[real.images, real.labels]))


def test_other_files_are_not_resolved(tmp_path: Path):
    save(tmp_path, images_zca_best=torch.zeros(1), images_best=torch.zeros(1), other=torch.zeros(1))
    assert resolve(tmp_path / "other.pt") == tmp_path / "other.pt"
    assert resolve(tmp_path / "images_7.pt") == tmp_path / "images_7.pt"


def test_masks_are_not_read_as_labels(tmp_path: Path):
    path = tmp_path / "set.pt"
    torch.save([real_samples().images[:4], torch.zeros(4, 8, 8, dtype=torch.int64)], path)
    with pytest.raises(InputError, match=r"labels in .* is '\(4, 8, 8\) int64'; .*; masks of segmentation are not"):
        read_stored(path)
