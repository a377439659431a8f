"""Imported condensed sets of digits, which a small teacher checks in `Workshop` or in the program `condkd`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from condkd_ray import __main__
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Samples, to_model, to_unit, unseen
from condkd_ray.data.condensed_sets import StoredSet
from condkd_ray.data.datasets import Dataset
from condkd_ray.methods.condensation import Imported, RandomReal
from condkd_ray.methods.condensation.judgement import Subject, judge
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.trial.artifacts import StandIns, Workshop
from condkd_ray.trial.config import TrialConfig

CONFIG = TrialConfig(
    teacher=TeacherConfig(network=ResNet(depth=8, width=8), training=Supervised(epochs=15)),
    student=ResNet(depth=8, width=2),
    condensation=RandomReal(ipc=1),
    distiller=Distiller(condensed_share=0.25),
)
SWAPPED = [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]
ZCA = 0.01


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workshop(cache) -> Workshop:
    return Workshop(cache)


@pytest.fixture(scope="module")
def dataset(workshop) -> Dataset:
    return workshop.data(CONFIG)


def few(dataset: Dataset, each: int) -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] and labels of `each` digits per class."""
    labels = dataset.train.labels
    rows = torch.cat([(labels == k).nonzero()[:each, 0] for k in range(10)])
    return dataset.train.pixels[rows].float() / 255, labels[rows]


def condensed(dataset: Dataset, each: int) -> tuple[Tensor, Tensor]:
    """Return digits with noise as in optimised pixels: values beyond [0, 1], and between the 256 grey values."""
    unit, labels = few(dataset, each)
    noise = torch.randn(unit.shape, generator=torch.Generator().manual_seed(0))
    return 1.1 * unit - 0.03 + 0.12 * noise, labels


Values = tuple[float, ...]


def saved_as(unit: Tensor, kind: str, mean: Values, std: Values) -> Tensor:
    normalised = to_model(unit, mean, std)
    kinds = {
        "unit": unit,
        "signed": 2 * unit - 1,
        "uint8": 255 * unit,
        "normalised": normalised,
        "mnist": to_model(unit, (0.1307,), (0.3081,)),
        "twice": to_model(normalised, mean, std),
    }
    return kinds[kind]


def saved_unit(images: Tensor, kind: str, mean: Values, std: Values) -> Tensor:
    """The inverse of `saved_as`."""
    return {
        "unit": images,
        "signed": (images + 1) / 2,
        "uint8": images / 255,
        "normalised": to_unit(images, mean, std),
    }[kind]


def write(folder: Path, images: Tensor, labels: Any) -> Path:
    """Write the set to a new folder, because a workshop reads each file once."""
    path = folder / str(len(list(folder.iterdir()))) / "set.pt"
    path.parent.mkdir()
    torch.save({"data": [[images, labels]]}, path)
    return path


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> bool:
    """Return true if both class-major sets have the same images of each class, in any order."""
    count = len(found) // 10
    rows = [images.flatten(1).view(10, count, 1, -1) for images in (found, wanted)]
    distances = (rows[0] - rows[1].transpose(1, 2)).abs().amax(-1)
    return bool((distances.amin(1) < tolerance).all() and (distances.amin(2) < tolerance).all())


def using(path: Path, **fields: Any) -> TrialConfig:
    return replace(CONFIG, condensation=Imported(path=path, **({"ipc": 1} | fields)))


def imported(workshop: Workshop, path: Path, **fields: Any) -> Samples:
    made = workshop.prepare(using(path, **fields)).condensed
    assert made is not None
    return made


LOGGED = {
    "unit": "read as [0, 1]",
    "signed": "read as [-1, 1]",
    "uint8": "read as 0 to 255",
    "normalised": "read as normalised by the teacher's constants",
    "mnist": "read as normalised by mnist's constants",
}


@pytest.mark.parametrize("kind", LOGGED)
def test_the_space_of_real_images_is_recognised(tmp_path, workshop, dataset, logged, kind):
    unit, labels = few(dataset, 4)
    path = write(tmp_path, saved_as(unit, kind, dataset.mean, dataset.std), labels)
    found = imported(workshop, path, ipc=4)
    assert same(found.images, to_model(unit, dataset.mean, dataset.std))
    assert torch.equal(found.labels, labels)
    assert any(
        "condensed set set.pt, 4 a class: the teacher classifies " in line and LOGGED[kind] in line for line in logged
    )


@pytest.mark.parametrize("each", [1, 10])
@pytest.mark.parametrize("kind", ["unit", "signed", "uint8", "normalised"])
def test_the_space_of_pixels_beyond_the_bounds_is_recognised(tmp_path, workshop, dataset, logged, kind, each):
    unit, labels = condensed(dataset, each)
    found = imported(workshop, write(tmp_path, saved_as(unit, kind, dataset.mean, dataset.std), labels), ipc=each)
    assert same(found.images, to_model(unit, dataset.mean, dataset.std))
    assert any(LOGGED[kind] in line for line in logged)


def test_images_in_half_precision_are_read(tmp_path, workshop, dataset):
    unit, labels = few(dataset, 4)
    found = imported(
        workshop, write(tmp_path, saved_as(unit, "signed", dataset.mean, dataset.std).half(), labels), ipc=4
    )
    assert same(found.images, to_model(unit, dataset.mean, dataset.std), 0.01)


@pytest.mark.parametrize("factor", [0.4, 1.0, 5.0])
def test_a_set_is_not_refused_for_its_spread_alone(tmp_path, workshop, dataset, factor):
    """Mean images have little spread; one image a class of distribution matching has five times that of real images."""
    unit, labels = condensed(dataset, 1)
    images = factor * saved_as(unit, "normalised", dataset.mean, dataset.std)
    found = imported(workshop, write(tmp_path, images, labels), space="auto" if factor > 1 else "normalised")
    assert same(found.images, images, 1e-6)


@pytest.mark.parametrize("kind", ["unit", "signed", "uint8", "normalised"])
@pytest.mark.parametrize("constants", [(0.5, 0.5), (0.13, 0.9), (0.02, 0.06)])
def test_spread_is_compared_with_that_of_real_images(kind, constants):
    """Medical images are mostly black, so their spread in a teacher's space may have any value."""
    rng = torch.Generator().manual_seed(0)
    discs = torch.nn.functional.interpolate(torch.rand(200, 1, 4, 4, generator=rng), size=28, mode="bilinear")
    unit = (2 * discs - 1.2).clamp(0, 1).mul(255).round() / 255
    assert (unit == 0).float().mean() > 0.5
    mean, std = ((value,) for value in constants)
    real = unseen(to_model(unit, mean, std), torch.arange(200) % 10)
    pixels = saved_as(unit[:20], kind, mean, std)
    noisy = saved_as(unit[:20] + 0.05 * torch.randn(20, 1, 28, 28, generator=rng), kind, mean, std)
    subject = Subject("a set", 10, mean, std)
    for images in (pixels, noisy):
        found = judge(StoredSet(images, torch.arange(20) % 10), subject, real=real)
        assert same(found.space.convert(images, mean, std), to_model(saved_unit(images, kind, mean, std), mean, std))


def test_without_a_teacher_an_ambiguous_set_is_read_as_normalised_once_with_a_note(dataset):
    """Optimised pixels of digits do not show whether they were normalised once or twice."""
    unit, labels = condensed(dataset, 10)
    twice = saved_as(unit, "twice", dataset.mean, dataset.std)
    real = dataset.train.samples(dataset.mean, dataset.std)
    found = judge(StoredSet(twice, labels), Subject("a set", 10, dataset.mean, dataset.std), real=real)
    assert found.space.name == "normalised"
    assert any("it may also be normalised twice (--condensed-mean" in note for note in found.notes)


def test_images_normalised_twice_are_refused_with_the_flags_that_accept_them(tmp_path, workshop, dataset):
    for make in (few, condensed):
        unit, labels = make(dataset, 10)
        path = write(tmp_path, saved_as(unit, "twice", dataset.mean, dataset.std), labels)
        with pytest.raises(
            InputError, match=r"normalised twice, .*--condensed-mean [\d.]+ --condensed-std [\d.]+ accepts"
        ):
            imported(workshop, path)
        (m,), (s,) = dataset.mean, dataset.std
        found = imported(workshop, path, ipc=10, mean=(m + m * s,), std=(s * s,))
        assert same(found.images, to_model(unit, dataset.mean, dataset.std))


@pytest.mark.parametrize(("kind", "declared"), [("normalised", "unit"), ("unit", "normalised"), ("signed", "uint8")])
def test_a_wrongly_declared_space_is_refused_unless_forced(tmp_path, workshop, dataset, logged, kind, declared):
    unit, labels = condensed(dataset, 10)
    path = write(tmp_path, saved_as(unit, kind, dataset.mean, dataset.std), labels)
    with pytest.raises(
        InputError, match=rf"space of condensed set set.pt, 10 a class is .*{kind}.*or --force-condensed"
    ):
        imported(workshop, path, space=declared)
    logged.clear()
    assert len(imported(workshop, path, ipc=10, space=declared, force=True)) == 100
    assert any("set.pt, 10 a class is taken by force: space of" in line for line in logged)


def test_an_ambiguous_space_is_decided_by_the_teachers_accuracy(tmp_path, workshop, dataset):
    """Normalised images of low contrast have values similar to those of images in [-1, 1]."""
    unit, labels = condensed(dataset, 40)
    pale = 0.8 * saved_as(unit, "normalised", dataset.mean, dataset.std)
    path = write(tmp_path, pale, labels)
    with pytest.raises(
        InputError, match=r"normalised\), in which the teacher classifies 9.* correctly, in the declared one"
    ):
        imported(workshop, path, space="signed")
    assert same(imported(workshop, path, ipc=40).images, pale)


def test_the_teacher_classifies_the_parts_of_a_set_of_idc(tmp_path, workshop, dataset, logged):
    """An image of four parts is classified wrongly; integer values are found in the file, not in the enlarged parts."""
    unit, labels = few(dataset, 16)
    small = torch.nn.functional.interpolate(unit, size=4, mode="area").mul(255).round()
    fours = small.view(10, 4, 2, 2, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(40, 1, 8, 8)
    path = write(tmp_path, fours, labels[::4])
    assert len(imported(workshop, path, ipc=16, factor=2)) == 160
    message = next(line for line in logged if "set.pt, 16 a class: the teacher classifies" in line)
    assert "read as 0 to 255, by its pixels" in message
    assert float(message.partition("classifies ")[2].partition("%")[0]) > 25
    with pytest.raises(InputError, match=r"teacher's accuracy on condensed set set\.pt, 4 a class is"):
        imported(workshop, path)


def test_two_swapped_classes_are_named_and_can_be_declared(tmp_path, workshop, dataset):
    unit, labels = condensed(dataset, 10)
    path = write(tmp_path, unit, torch.tensor(SWAPPED)[labels])
    with pytest.raises(InputError) as caught:
        imported(workshop, path)
    order = " ".join(map(str, SWAPPED))
    assert "the images labelled 8 are 3, 3 are 8; --condensed-order " + order in str(caught.value)
    assert torch.equal(imported(workshop, path, ipc=10, order=tuple(SWAPPED)).labels, labels)
    assert len(imported(workshop, path, force=True)) == 10
    right = write(tmp_path, unit, labels)
    with pytest.raises(InputError, match=f"--condensed-order {' '.join(map(str, range(10)))} corrects"):
        imported(workshop, right, order=tuple(SWAPPED))


def test_another_order_of_all_classes_is_named(tmp_path, workshop, dataset):
    unit, labels = condensed(dataset, 10)
    with pytest.raises(InputError, match=r"the images labelled 1 are 0, 2 are 1, .*-order 1 2 3 4 5 6 7 8 9 0"):
        imported(workshop, write(tmp_path, unit, (labels + 1) % 10))


def test_shuffled_labels_are_refused(tmp_path, workshop, dataset):
    unit, labels = condensed(dataset, 10)
    shuffled = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    path = write(tmp_path, unit, shuffled)
    with pytest.raises(
        InputError, match=r"teacher's accuracy on .* is 0\.\d+; accepted: more than 0.250.*another data"
    ):
        imported(workshop, path, ipc=1)
    assert len(imported(workshop, path, ipc=1, force=True)) == 10


def test_whitening_is_named_only_if_neighbouring_pixels_differ(tmp_path, workshop, dataset, logged):
    unit, labels = few(dataset, 20)
    flat = (dataset.train.pixels.float() / 255).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    white = ((unit.flatten(1) - flat.mean(0)) @ (vectors * (values + ZCA).rsqrt()) @ vectors.T).view_as(unit)
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    for images, whitened in ((white, True), (unit, False)):
        with pytest.raises(InputError) as caught:
            imported(workshop, write(tmp_path, images, shuffled))
        assert ("ZCA-whitened" in str(caught.value)) == whitened
        assert "normalised twice" not in str(caught.value)


@pytest.mark.parametrize("right", [0, 1, 2, 10])
def test_a_set_of_ten_images_is_never_refused_for_its_accuracy(tmp_path, workshop, dataset, logged, right):
    unit, labels = condensed(dataset, 1)
    given = torch.where(labels < right, labels, right + (labels + 1 - right) % max(1, 10 - right))
    logged.clear()
    assert len(imported(workshop, write(tmp_path, unit, given))) == 10
    doubted = any("too low to show that the teacher recognises its images" in line for line in logged)
    assert doubted == (right < 3)
    assert right == 10 or any("no image of these classes is classified correctly" in line for line in logged)


def test_a_set_is_judged_once_and_as_a_whole(tmp_path, workshop, dataset, logged):
    unit, labels = condensed(dataset, 10)
    path = write(tmp_path, unit, labels)
    logged.clear()
    workshop.prepare_all([replace(using(path, ipc=ipc), seed=seed) for ipc in (1, 5) for seed in (0, 1)])
    assert sum("the teacher classifies" in line for line in logged) == 1


def test_faults_found_in_the_file_alone_are_refused_before_a_teacher_is_trained(tmp_path, dataset, logged):
    unit, labels = few(dataset, 4)
    cases = [
        (saved_as(unit, "twice", dataset.mean, dataset.std), {}, "normalised twice"),
        (unit, {"space": "normalised"}, "by its pixels"),
        (unit, {"ipc": 5}, "condensation.ipc of .* is 5; accepted: 1 to 4"),
        (unit, {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "condensation.mean is .*1 values, one a channel"),
        (unit, {"order": (1, 0)}, "condensation.order is .*10 values, one a class"),
    ]
    for images, fields, message in cases:
        with pytest.raises(InputError, match=message):
            Workshop(tmp_path / "new").prepare_all([using(write(tmp_path, images, labels), **fields)])
    assert not any(line.startswith("training") for line in logged)
    assert not (tmp_path / "new").exists()


def test_an_estimate_accepts_a_set_that_only_the_teacher_can_refuse(tmp_path, dataset, logged):
    unit, labels = condensed(dataset, 10)
    stand_ins = StandIns()
    made = Workshop(tmp_path, stand_ins=stand_ins).prepare(using(write(tmp_path, unit, (labels + 1) % 10)))
    assert (len(made.condensed or ()), logged, len(stand_ins.teachers)) == (10, [], 1)


def test_soft_labels_are_logged(tmp_path, workshop, dataset, logged):
    unit, labels = few(dataset, 4)
    hot = torch.nn.functional.one_hot(labels, 10).float()
    imported(workshop, write(tmp_path, unit, hot - 0.1))
    assert not any("soft labels" in line for line in logged)
    softened = 0.9 * hot + 0.01 * torch.arange(10)
    assert torch.equal(imported(workshop, write(tmp_path, unit, softened), ipc=4).labels, labels)
    assert any("only the largest class of its soft labels is used" in line for line in logged)


def test_the_command_trains_with_a_set_of_kip(tmp_path, cache, workshop, dataset, monkeypatch, capsys):
    unit, labels = few(dataset, 4)
    workshop.teacher(CONFIG)  # cached for the command
    hot = torch.nn.functional.one_hot(labels, 10).float() - 0.1
    np.savez(tmp_path / "kip.npz", images=unit.permute(0, 2, 3, 1).numpy(), labels=hot.numpy())
    tree = {
        "teacher": {"network": {"name": "resnet", "depth": 8, "width": 8}, "training": {"epochs": 15}},
        "student": {"name": "resnet", "depth": 8, "width": 2},
        "condensation": {"name": "imported", "path": str(tmp_path / "kip.npz"), "ipc": 4},
        "inversion": {"name": "fast", "steps": 1, "batch": 16, "latent": 16, "width": 8},
        "distiller": {"steps": 1, "batch": 16, "condensed_share": 0.25},
        "rounds": 1,
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(tree))
    line = ["condkd", "train", str(tmp_path / "trial.yaml"), "--cache", str(cache), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    output = capsys.readouterr()
    assert caught.value.code == 0, output.err
    assert "condensed set kip.npz, 4 a class: the teacher classifies " in output.out + output.err
