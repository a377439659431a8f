"""Targets of segmented images: balanced layouts, and layouts from the masks of condensed images."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, unseen
from condkd_ray.methods.targets import (
    CELLS,
    Balanced,
    Layouts,
    balanced_layouts,
    moved_layouts,
)


def teacher_of(height=12, width=18, num_classes=5, flip_ok=True, task="segmentation"):
    """Return what targets read of a teacher."""
    shape = (3, height, width)
    return SimpleNamespace(num_classes=num_classes, image_shape=shape, flip_ok=flip_ok, task=task)


def guides(*rows):
    """Return condensed images of one row of pixels each, with these labels."""
    labels = torch.tensor(rows)[:, None]
    return unseen(torch.zeros(len(rows), 3, *labels.shape[1:]), labels)


@settings(max_examples=30)
@given(count=st.integers(0, 20), height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_cells_of_balanced_layouts_are_of_one_class_and_of_near_equal_size(count, height, width, seed):
    layouts = balanced_layouts(count, teacher_of(height, width), Streams(seed))
    assert layouts.shape == (count, height, width)
    assert layouts.dtype == torch.int64
    rows, columns = min(CELLS[0], height), min(CELLS[1], width)
    classes = torch.zeros(5, dtype=torch.int64)
    for i in range(rows):
        for j in range(columns):
            # The rows r with floor(r rows / height) = i.
            top, bottom = -(-i * height // rows), -(-(i + 1) * height // rows)
            left, right = -(-j * width // columns), -(-(j + 1) * width // columns)
            cell = layouts[:, top:bottom, left:right].flatten(1)
            assert cell.shape[1] > 0
            assert (cell == cell[:, :1]).all()
            classes += cell[:, 0].bincount(minlength=5)
    assert classes.sum() == count * rows * columns
    assert classes.max() - classes.min() <= 1


def test_balanced_targets_are_layouts_from_their_own_stream():
    rng = Streams(3)
    targets = Balanced().sample(7, teacher_of(), rng=rng)
    assert torch.equal(targets.labels, balanced_layouts(7, teacher_of(), Streams(3)))
    assert targets.soft is None
    assert len(targets) == 7
    assert rng.state_dict()["device"].keys() == {"targets"}
    # With 168 cells in random order, two layouts are hardly ever equal.
    assert len(targets.labels.flatten(1).unique(dim=0)) == 7


def test_each_mask_is_used_equally_often_in_random_order():
    condensed = guides([0, 0], [1, 1], [2, 2])
    labels = Layouts(shift=0.0).sample(11, teacher_of(), rng=Streams(0), condensed=condensed).labels
    counts = labels[:, 0, 0].bincount(minlength=3).tolist()
    assert sorted(counts) == [3, 4, 4]
    orders = {
        tuple(Layouts().sample(3, teacher_of(), rng=Streams(s), condensed=condensed).labels[:, 0, 0].tolist())
        for s in range(40)
    }
    assert len(orders) == 6


@pytest.mark.parametrize("flip", [True, False])
def test_masks_are_mirrored_only_where_the_classes_allow_it(flip):
    condensed = guides([0, 1, 2, UNLABELLED])
    drawn = Layouts(shift=0.0).sample(400, teacher_of(flip_ok=flip), rng=Streams(0), condensed=condensed).labels
    mirrored = (drawn[:, 0] == torch.tensor([UNLABELLED, 2, 1, 0])).all(1)
    plain = (drawn[:, 0] == torch.tensor([0, 1, 2, UNLABELLED])).all(1)
    assert (mirrored | plain).all()
    assert abs(int(mirrored.sum()) - 200 * flip) <= (5 * 100**0.5 if flip else 0)


def test_masks_shift_by_up_to_a_share_of_their_sides_and_repeat_the_edge():
    mask = torch.arange(8 * 16).view(1, 8, 16)
    moved = moved_layouts(mask.expand(600, 8, 16), 0.125, flip=False, rng=torch.Generator().manual_seed(0))
    found = set()
    for one in moved.unique(dim=0):
        fitting = [
            (down, right)
            for down in range(-1, 2)
            for right in range(-2, 3)
            if all(
                one[r, c] == mask[0, min(max(r + down, 0), 7), min(max(c + right, 0), 15)]
                for r in range(8)
                for c in range(16)
            )
        ]
        assert len(fitting) == 1
        found.add(fitting[0])
    assert len(found) == 15


def test_the_shifts_do_not_depend_on_flip():
    symmetric = torch.zeros(50, 6, 9, dtype=torch.int64)
    symmetric[:, 3, 4] = 1
    drawn = [moved_layouts(symmetric, 0.3, flip=flip, rng=torch.Generator().manual_seed(2)) for flip in (True, False)]
    rows = [one.amax(2).argmax(1) for one in drawn]
    assert torch.equal(*rows)
    assert len(rows[0].unique()) > 1


@pytest.mark.parametrize("condensed", [None, guides([0, 1])[:0]])
def test_layouts_need_a_condensed_set(condensed):
    assert Layouts.needs_condensed
    with pytest.raises(InputError, match=r"condensed set of targets layouts is .*; accepted: a condensation"):
        Layouts().sample(2, teacher_of(), rng=Streams(0), condensed=condensed)


def test_layouts_are_refused_in_classification_and_for_impossible_shifts():
    with pytest.raises(InputError, match="task under targets layouts is 'classification'; accepted: segmentation"):
        Layouts().check(teacher_of(task="classification"))
    Layouts().check(teacher_of())
    with pytest.raises(InputError, match=r"layouts shift is 1.5"):
        Layouts(shift=1.5)
