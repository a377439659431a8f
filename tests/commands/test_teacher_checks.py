"""Whether a teacher and images belong together, on blobs near four corners."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toy import MEAN, NUM_CLASSES, STD, TEACHER, blobs, make_teacher

from condkd_ray.commands.teacher_checks import check_classes, check_form, check_known, mirrors
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import Dataset, RealImages

NAMES = ("nw", "ne", "sw", "se")
WHERE = Path("photos")


def dataset(order: tuple[int, ...] = (0, 1, 2, 3)) -> Dataset:
    """Blobs, whose corner `order[k]` lies in folder k."""
    folder_of = torch.tensor([order.index(corner) for corner in range(NUM_CLASSES)])
    train, test = (RealImages(part.pixels, folder_of[part.labels]) for part in (blobs(40, seed=5), blobs(40, seed=6)))
    names = tuple(NAMES[corner] for corner in order)
    return Dataset("toy", train, None, test, NUM_CLASSES, names, MEAN, STD, False, "digest")


def test_a_teacher_that_knows_the_images_answers_for_those_held_out():
    share, answers = check_known(make_teacher(), dataset(), WHERE, force=False)
    assert share > 0.8
    assert answers.shape == (40,)
    assert (answers == dataset().test.labels).double().mean() > 0.8


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (1, 0, 2, 3)])
def test_folders_in_another_order_are_refused_with_the_teachers(order: tuple[int, ...]):
    with pytest.raises(InputError, match=r"in the order nw, ne, sw, se it would be 0\.[89]"):
        check_known(make_teacher(), dataset(order), WHERE, force=False)
    assert check_known(make_teacher(), dataset(order), WHERE, force=True)[0] < 0.6


def test_images_it_does_not_know_are_refused():
    rng = torch.Generator().manual_seed(0)
    noise = RealImages(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(40) % 4)
    with pytest.raises(InputError, match=r"teacher's accuracy on the images in photos is .* likely causes"):
        check_known(make_teacher(), replace(dataset(), train=noise, test=noise), WHERE, force=False)


def test_mirroring_is_asked_of_the_teacher():
    part = blobs(64, seed=5)
    assert not mirrors(make_teacher(), part)
    both_ways = torch.maximum(part.pixels, part.pixels.flip(3))
    assert mirrors(make_teacher(), RealImages(both_ways, part.labels))


def test_channels_and_classes_of_the_weights_must_be_those_of_the_images(tmp_path: Path):
    weights, shown = tmp_path / "teacher.safetensors", dataset()
    for shape, classes, said in (
        ((3, 8, 8), 4, "channels of the images in photos is 1; accepted: 3"),
        ((1, 8, 8), 7, "number of class folders in photos is 4; accepted: 7"),
    ):
        save_file(TEACHER.build(shape, classes).state_dict(), weights)
        with pytest.raises(InputError, match=said):
            check_form(TEACHER.build((1, 8, 8), 4), weights, shown, WHERE)
    save_file(TEACHER.build((1, 8, 8), 4).state_dict(), weights)
    check_form(TEACHER.build((1, 8, 8), 4), weights, shown, WHERE)
    check_classes(4, shown, WHERE)
