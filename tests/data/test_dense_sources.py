"""Data sets of other packages with a class per pixel."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from condkd_ray import register
from condkd_ray.core.method import InputError
from condkd_ray.core.task import Task
from condkd_ray.data.datasets import DataSource, Found, load
from condkd_ray.data.readers import Raw
from condkd_ray.testing.datasets import check_dataset
from data.image_files import random_pixels

NAMES = ("road", "sky", "tree")


@dataclass(frozen=True, kw_only=True)
class Views(DataSource):
    task: ClassVar[Task] = "segmentation"
    name: Literal["views"] = "views"

    def read(self) -> Found:
        return FOUND[-1]


FOUND: list[Found] = []


def masks(count: int, side: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(count)
    return torch.randint(-1, 3, (count, side, side), generator=rng)


@pytest.fixture
def found() -> Found:
    train, test = (Raw(random_pixels(n, seed=n), masks(n), NAMES) for n in (20, 6))
    return Found(train, test)


def loaded(found: Found, **fields):
    FOUND.append(found)
    return load(Views(**fields))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.uint8])
def test_masks_of_all_integer_types_become_int16(found: Found, dtype: torch.dtype):
    labels = found.train.labels if dtype != torch.uint8 else found.train.labels.clamp_min(0)
    dataset = loaded(replace(found, train=replace(found.train, labels=labels.to(dtype))))
    assert torch.equal(dataset.train.labels, labels.to(torch.int16))
    assert dataset.train.samples(dataset.mean, dataset.std).labels.dtype == torch.int64
    assert dataset.task == "segmentation"
    check_dataset(Views())


def test_a_data_set_with_an_unknown_task_cannot_be_registered():
    @dataclass(frozen=True, kw_only=True)
    class Misspelt(Views):
        task = "segments"
        name: Literal["misspelt_views"] = "misspelt_views"

    with pytest.raises(InputError, match="Misspelt: task is 'segments'; accepted: 'classification' or 'segmentation'"):
        register(Misspelt)


def test_images_are_resized_with_their_masks(found: Found):
    dataset = loaded(found, size=(4, 16))
    assert dataset.train.labels.shape == (20, 4, 16)
    rows, columns = (2 * torch.arange(4) + 1) * 8 // 8, torch.arange(16) // 2
    assert torch.equal(dataset.train.labels, found.train.labels[:, rows][:, :, columns].to(torch.int16))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda labels: labels[:, 0, 0], r"labels of train images of data set views is 'torch.int64 \(20,\)'"),
        (lambda labels: labels[:, :, :7], r"accepted: int16 \(20, 8, 8\), one per pixel"),
        (lambda labels: labels.float(), r"'torch\.float32 \(20, 8, 8\)'"),
        (lambda labels: labels + 1, "highest of the labels in train images of data set views is 3"),
        (lambda labels: labels - 1, "lowest of the labels in train images of data set views is -2"),
        (lambda labels: labels * 0 - 1, "number of train images of data set views with a labelled pixel is 0"),
        (lambda labels: labels * 0, "number of classes with pixels in views is 1; accepted: 2 or more"),
    ],
)
def test_masks_that_do_not_fit_are_refused(found: Found, change, problem: str):
    with pytest.raises(InputError, match=problem):
        loaded(replace(found, train=replace(found.train, labels=change(found.train.labels))))


def test_classes_of_other_parts_are_those_of_train(found: Found):
    assert found.test is not None
    other = replace(found.test, class_names=NAMES[::-1])
    with pytest.raises(InputError, match=r"classes of the test images is \('tree', .*; accepted: those of the train"):
        loaded(replace(found, test=other))
    with pytest.raises(InputError, match="classes of the validation images"):
        loaded(replace(found, val=other))
    cut = replace(found.test, pixels=found.test.pixels[:, :, :6], labels=found.test.labels[:, :6])
    with pytest.raises(InputError, match=r"shape of the validation images is \(3, 6, 8\)"):
        loaded(replace(found, val=cut))


def test_images_without_a_class_are_left_out_with_a_note(found: Found):
    labels = found.train.labels.clone()
    labels[3:5] = -1
    dataset = loaded(replace(found, train=replace(found.train, labels=labels)))
    assert len(dataset.train) == 18
    assert dataset.notes == ("2 of 20 train images of data set views are left out: none of their pixels has a class",)


def test_classes_with_few_pixels_are_noted(found: Found):
    labels = found.train.labels.clamp(max=0)
    labels[7, 2] = 1
    notes = loaded(replace(found, train=replace(found.train, labels=labels))).notes
    assert notes == (
        "1 of 3 classes have no pixel in a train image, so the student cannot learn them (tree)",
        "1 of 3 classes have pixels in a single train image (sky)",
    )


def test_held_out_parts_share_no_image(found: Found):
    pixels, labels = random_pixels(40)[torch.arange(60) % 40], masks(40)[torch.arange(60) % 40]
    dataset = loaded(Found(Raw(pixels, labels, NAMES), None), val_fraction=0.25)
    assert dataset.val is not None
    parts = [part.pixels.flatten(1).numpy() for part in (dataset.train, dataset.val, dataset.test)]
    assert len({bytes(row) for rows in parts for row in rows}) == sum(len(set(map(bytes, rows))) for rows in parts)
    where = {bytes(row): label for row, label in zip(pixels.flatten(1).numpy(), labels, strict=True)}
    for row, label in zip(dataset.test.pixels.flatten(1).numpy(), dataset.test.labels, strict=True):
        assert torch.equal(where[bytes(row)].to(torch.int16), label)
    assert any("20 of 60 images are copies" in note for note in dataset.notes)


def test_the_digest_covers_the_masks(found: Found):
    assert found.test is not None
    labels = found.test.labels.clone()
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert loaded(found).digest != loaded(replace(found, test=replace(found.test, labels=labels))).digest
