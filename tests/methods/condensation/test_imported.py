import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.image_files import write_folder, write_parquet
from shared_data import shared
from torch import Tensor

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples, to_model, unseen
from condkd_ray.data.condensed_sets import read_stored
from condkd_ray.data.datasets import CONSTANTS
from condkd_ray.methods.condensation import Imported
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, condense, real_pixels

SHAPE = (3, 8, 8)


def in_space(space: str) -> tuple[Tensor, Tensor]:
    pixels, labels = real_pixels()
    unit = pixels / 255
    return {"uint8": pixels, "unit": unit, "normalised": to_model(unit, MEAN, STD)}[space], labels


def save(path: Path, *pairs: Any, accuracies: Any = None) -> Path:
    """Save a file like the code of DC, DSA and DM, with numpy scalars beside the tensors."""
    accuracies = [np.float64(0.5)] if accuracies is None else accuracies
    torch.save({"data": [list(pair) for pair in pairs], "accs_all_exps": {"ConvNet": accuracies}}, path)
    return path


def read(path: Path, **fields: Any) -> Samples:
    return Imported(path=path, ipc=1, **fields).read(num_classes=NUM_CLASSES, image_shape=SHAPE, mean=MEAN, std=STD)


@pytest.mark.parametrize("declared", ["auto", "own"])
@pytest.mark.parametrize("space", ["uint8", "unit", "normalised"])
def test_torch_files_are_read_from_every_space(tmp_path: Path, space: str, declared: str):
    images, labels = in_space(space)
    samples = read(save(tmp_path / "x.pt", (images, labels)), space=space if declared == "own" else "auto")
    torch.testing.assert_close(samples.images, in_space("normalised")[0], atol=1e-6, rtol=0)
    assert torch.equal(samples.labels, labels)


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_parquet_files_and_folders_are_read(tmp_path: Path, layout: str):
    pixels, labels = real_pixels()
    names = [str(label) for label in range(NUM_CLASSES)]
    if layout == "parquet":
        path, order = write_parquet(tmp_path / "x.parquet", pixels, labels), torch.arange(len(labels))
    else:
        path, order = write_folder(tmp_path / "x", pixels, labels, names), labels.argsort(stable=True)
    assert torch.equal(read_stored(path).pixels, pixels[order])
    samples = read(path)
    torch.testing.assert_close(samples.images, in_space("normalised")[0][order], atol=1e-6, rtol=0)
    assert torch.equal(samples.labels, labels[order])


@pytest.mark.parametrize("space", ["uint8", "unit", "normalised"])
@pytest.mark.parametrize("declared", ["uint8", "unit", "normalised"])
def test_every_wrong_declaration_is_refused_unless_forced(tmp_path: Path, space: str, declared: str):
    path = save(tmp_path / "x.pt", in_space(space))
    if space != declared:
        with pytest.raises(InputError, match=rf"space of .*-space {space}\), by its pixels; or --force"):
            read(path, space=declared)
    assert len(read(path, space=declared, force=True)) == len(real_pixels()[1])


def test_other_normalisation_constants_are_declared_or_found(tmp_path: Path):
    unit = in_space("unit")[0]
    own = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    path = save(tmp_path / "x.pt", (to_model(unit, **own), real_pixels()[1]))
    for fields in ({}, own):
        torch.testing.assert_close(read(path, **fields).images, in_space("normalised")[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5,) * 3}, "condensation.mean, condensation.std is .*; accepted: both or none"),
        ({"mean": (float("nan"),) * 3, "std": (0.5,) * 3}, "condensation.mean is .*; accepted: finite values"),
        ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "condensation.std is .*; accepted: positive values"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3, "space": "unit"}, "space with mean and std is 'unit'"),
        ({"order": (0, 0, 1, 2)}, "condensation.order is .*; accepted: each of the labels 0 to K - 1 once"),
    ],
)
def test_declarations_that_do_not_fit_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Imported(path=Path("x.pt"), **fields)


def test_order_lists_the_files_label_of_each_class(tmp_path: Path):
    images, labels = in_space("normalised")
    order = torch.tensor([2, 0, 3, 1])
    path = save(tmp_path / "x.pt", (images, order[labels]))
    assert torch.equal(read(path, order=tuple(order.tolist())).labels, labels)


def test_which_selects_the_repeat(tmp_path: Path):
    images, labels = in_space("normalised")
    path = save(tmp_path / "x.pt", (images, labels), (0.9 * images, labels))
    assert torch.equal(read(path).images, 0.9 * images)
    assert torch.equal(read(path, which=0).images, images)
    with pytest.raises(InputError, match=r"which of .* is 2; accepted: -2 to 1"):
        read(path, which=2)


def test_any_ipc_up_to_that_of_the_file_is_accepted(tmp_path: Path):
    pixels, labels = real_pixels()
    path = write_parquet(tmp_path / "x.parquet", pixels, labels)
    assert condense(Imported(path=path, ipc=20)).labels.bincount().tolist() == [20] * NUM_CLASSES
    with pytest.raises(InputError, match="is 21; accepted: 1 to 20, as many as the file has"):
        condense(Imported(path=path, ipc=21))


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path, zipped: bool):
    path, target = tmp_path / "x.pt", tmp_path / "made by the pickle"
    torch.save({"data": [], "trap": Malicious(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"it contains \w+\.mkdir, which is not allowed"):
        read(path)
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(InputError, match="cannot read"):
        read(path)
    assert not target.exists()


def test_the_list_of_allowed_globals_is_narrow(tmp_path: Path):
    images, labels = in_space("normalised")
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(InputError, match="not allowed"):
        read(save(tmp_path / "x.pt", (images, labels), accuracies=np.zeros(3)))
    read(save(tmp_path / "x.pt", (images, labels)))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x, y: (x, y + 1), r"labels in .*accepted: 4 classes, each of 0 to 3"),
        (lambda x, y: (x[y != 2], y[y != 2]), r"\[0, 1, 3\]"),
        (lambda x, y: (x[..., :7], y), r"shape of the images in .* is \(3, 8, 7\); accepted: \(3, 8, 8\)"),
        (lambda x, y: (x.permute(0, 2, 1, 3), y), r"is \(8, 3, 8\)"),
        (lambda x, y: (x.clone().index_fill_(0, torch.tensor([0]), float("nan")), y), "not all finite"),
        (lambda x, y: (x.clone().index_fill_(0, torch.tensor([0]), float("inf")), y), "not all finite"),
        (lambda x, y: (x[0], y), r"images in .*\(N, C, H, W\)"),
        (lambda x, y: (x[:0], y[:0]), r"images in .*\(N, C, H, W\)"),
        (lambda x, y: (x, y[:-1]), r"labels in .*whole numbers"),
        (lambda x, y: (x, y + 0.5), r"labels in .*whole numbers"),
        (lambda x, y: (x.tolist(), y), "two tensors"),
        (lambda x, y: (x,), "two tensors"),
    ],
)
def test_sets_that_do_not_fit_are_refused(tmp_path: Path, change: Any, problem: str):
    path = save(tmp_path / "x.pt", change(*in_space("normalised")))
    with pytest.raises(InputError, match=problem):
        read(path)


def test_files_without_a_condensed_set_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="an existing file or folder"):
        read(tmp_path / "x.pt")
    (tmp_path / "x.mat").touch()
    with pytest.raises(InputError, match=r"\.parquet"):
        read(tmp_path / "x.mat")
    (tmp_path / "x.pt").write_bytes(b"no torch file")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "x.pt")
    for content in ([torch.zeros(1), torch.zeros(1)], {"images": torch.zeros(1)}, {"data": 3}, {"data": []}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(InputError, match="accepted"):
            read(tmp_path / "x.pt")


PUBLISHED = [
    ("dc_cifar10_ipc1.pt", "cifar10", 1, 1.36),
    ("dc_cifar10_ipc10.pt", "cifar10", 10, 1.58),
    ("dc_cifar10_ipc10_3runs.pt", "cifar10", 10, 1.65),
    ("camdm_cifar10_ipc10.pt", "cifar10", 10, 1.44),
    ("gm_cifar10_ipc50.parquet", "cifar10", 50, 1.25),
    ("dc_fashionmnist_ipc1_unconverged.pt", "fashion_mnist", 1, 1.02),
    ("dsa_cifar10_ipc1.pt", "cifar10", 1, 1.46),
    ("mtt_cifar10_ipc10_no_zca/images_5000.pt", "cifar10", 10, 1.65),
    ("kmeans_cifar10_ipc10/CIFAR10_IPC10_images.pt", "cifar10", 10, 1.37),
]


@pytest.mark.parametrize(("file", "data", "ipc", "spread"), PUBLISHED)
def test_condensed_sets_of_other_projects_are_read(file: str, data: str, ipc: int, spread: float):
    path = shared("condensed", file)
    mean, std = CONSTANTS[data]
    shape = (1, 28, 28) if data == "fashion_mnist" else (3, 32, 32)
    options: dict[str, Any] = {"num_classes": 10, "mean": mean, "std": std}
    samples = Imported(path=path).read(image_shape=shape, **options)
    assert samples.images.std().item() == pytest.approx(spread, abs=0.006)
    real = unseen(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64))
    made = Imported(path=path, ipc=ipc).condense(real, flip_ok=True, rng=Streams(0), **options)
    assert made.labels.tolist() == torch.arange(10).repeat_interleave(ipc).tolist()
    wrong = "normalised" if path.suffix == ".parquet" else "unit"
    declared = Imported(path=path, ipc=1, space=wrong)  # type: ignore[arg-type]
    if "unconverged" in file:
        # The mean of an unconverged set decides little, so there is only a note.
        found = declared.judged(declared.stored(10, shape), **options)
        assert any("is more likely normalised by the teacher's constants" in note for note in found.notes)
    else:
        with pytest.raises(InputError, match="by its pixels"):
            declared.read(image_shape=shape, **options)


def test_classes_that_file_and_data_set_name_are_matched_by_name(tmp_path: Path):
    pixels = torch.arange(3, dtype=torch.uint8).mul(80)[:, None, None, None].repeat(1, 1, 8, 8)
    write_folder(tmp_path, pixels, torch.arange(3), ["ant", "bee", "cat"])
    read = Imported(path=tmp_path, ipc=1, force=True).stored
    assert read(3, (1, 8, 8), ("cat", "ant", "bee")).labels.tolist() == [1, 2, 0]
    assert read(3, (1, 8, 8), ("0", "1", "2")).labels.tolist() == [0, 1, 2]
    ordered = Imported(path=tmp_path, ipc=1, order=(2, 1, 0)).stored
    assert ordered(3, (1, 8, 8), ("cat", "ant", "bee")).labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "pair",
    [
        (torch.rand(4, 1, 8, 8).to_sparse(), torch.arange(4)),
        (torch.rand(4, 1, 8, 8).to(torch.float8_e4m3fn), torch.arange(4)),
        (torch.rand(4, 1, 8, 8), torch.arange(4).to_sparse()),
        (torch.rand(4, 1, 8, 8), [0, 1, 2, 10**30]),
    ],
    ids=["sparse images", "images of 8 bits", "sparse labels", "labels beyond 64 bits"],
)
def test_unsupported_tensors_are_refused(tmp_path: Path, pair: Any):
    torch.save(list(pair), tmp_path / "data.pt")
    with pytest.raises(InputError, match=r"(cannot read|images in|labels (in|of)) .*data\.pt.*; accepted: "):
        Imported(path=tmp_path / "data.pt", ipc=1).stored(4, (1, 8, 8))
