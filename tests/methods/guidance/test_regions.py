import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import segmentation

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.guidance.regions import (
    class_masks,
    draw_regions,
    match_regions,
    own_or_other,
    region_means,
    region_numbers,
    shown_classes,
)

sides = st.integers(1, 7)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40)
@given(sides=st.tuples(sides, sides, sides, sides), seed=st.integers(0, 99))
def test_region_means_equal_the_formula(sides, seed):
    height, width, rows, columns = sides
    labels = torch.randint(-1, 4, (3, height, width), generator=stream(seed))
    maps = torch.randn(3, 2, rows, columns, generator=stream(seed), dtype=torch.float64)
    masks = class_masks(labels, 4)
    wanted = [
        segmentation.region_mean(maps[b].tolist(), (labels[b] == k).double().tolist())
        for b in range(3)
        for k in range(4)
    ]
    torch.testing.assert_close(region_means(maps, masks.double()), torch.tensor(wanted, dtype=torch.float64))
    found = region_means(maps.float(), masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_region_means_have_the_gradient_of_their_weights():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, UNLABELLED]]])
    maps = torch.zeros(1, 1, 1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(region_means(maps, class_masks(labels, 2))[1].sum(), maps)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.25, 0.75]))


def test_half_precision_maps_are_averaged_in_float32():
    maps = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    maps[..., 0, 0] = 3.0
    with torch.autocast("cpu", torch.bfloat16):
        found = region_means(maps, class_masks(torch.zeros(1, 64, 64, dtype=torch.int64), 1))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1 + 2 / 4096, abs=1e-6)


def test_a_class_is_shown_from_one_percent_of_the_pixels():
    labels = torch.zeros(4, 10, 20, dtype=torch.int64)
    labels[0, 0, :1] = 1
    labels[1, 0, :2] = 1
    labels[2] = UNLABELLED
    labels[3] = UNLABELLED
    labels[3, 0, 0] = 2
    wanted = [[True, False, False], [True, True, False], [False, False, False], [False, False, True]]
    assert shown_classes(labels, 3).tolist() == wanted
    assert region_numbers(shown_classes(labels, 3)).tolist() == [0, 3, 4, 11]


def test_the_largest_classes_are_shown_if_all_are_small():
    labels = (torch.arange(400) // 2).view(1, 20, 20)
    labels[0, 19] = UNLABELLED
    shown = shown_classes(labels, 200)
    assert shown.sum() == 190
    assert not shown[0, 190:].any()


def test_regions_are_of_shown_classes_without_repetition_and_uniform():
    shown = torch.tensor([[True, False, True, True, False], [False, True, False, False, True]]).repeat(1000, 1)
    classes = draw_regions(shown, 2, stream()).view(2000, 2)
    images, classes = classes // 5, classes % 5
    assert torch.equal(images, torch.arange(2000)[:, None].expand(2000, 2))
    assert (classes[:, 0] != classes[:, 1]).all()
    for half, candidates in ((classes[::2], [0, 2, 3]), (classes[1::2], [1, 4])):
        counts = half[:, 0].bincount(minlength=5)
        share = 1 / len(candidates)
        spread = 5 * (1000 * share * (1 - share)) ** 0.5
        assert all(abs(int(counts[k]) - 1000 * share) < spread for k in candidates)
        assert counts.sum() == counts[candidates].sum()


def test_regions_repeat_in_turn_if_an_image_shows_fewer():
    shown = torch.tensor([[True, False, True], [False, True, False]])
    first, second = draw_regions(shown, 5, stream()).view(2, 5)
    assert first[0] != first[1]
    assert first.tolist() == [*first[:2].tolist() * 2, first[0].item()]
    assert sorted(first[:2].tolist()) == [0, 2]
    assert second.tolist() == [4] * 5


def test_an_image_that_shows_no_class_gets_regions_of_others():
    shown = torch.tensor([[False, False], [True, False], [False, True], [False, False]])
    drawn = torch.stack([draw_regions(shown, 2, stream(seed)).view(4, 2) for seed in range(40)])
    assert (drawn[:, 1] == 2).all()
    assert (drawn[:, 2] == 5).all()
    for image in (0, 3):
        assert set(drawn[:, image].flatten().tolist()) == {2, 5}


def test_if_no_image_shows_a_class_the_numbers_are_still_valid_rows():
    drawn = draw_regions(torch.zeros(3, 2, dtype=torch.bool), 4, stream())
    assert drawn.shape == (12,)
    assert ((drawn >= 0) & (drawn < 6)).all()


def test_matched_regions_have_the_wanted_class_and_are_uniform():
    shown = torch.tensor([[True, False], [True, False], [False, False]])
    wanted = torch.tensor([0, 1]).repeat(1000)
    regions, exist = match_regions(shown, wanted, stream())
    assert torch.equal(regions % 2, wanted)
    assert torch.equal(exist, wanted == 0)
    counts = (regions[exist] // 2).bincount(minlength=3)
    assert counts[2] == 0
    assert abs(int(counts[0]) - 500) < 5 * 250**0.5


def test_rows_that_are_not_valid_are_replaced_by_valid_ones():
    valid = torch.tensor([False, True, False, True, False])
    drawn = torch.stack([own_or_other(valid, stream(seed)) for seed in range(60)])
    assert (drawn[:, valid] == torch.tensor([1, 3])).all()
    for row in (0, 2, 4):
        assert set(drawn[:, row].tolist()) == {1, 3}
    assert own_or_other(torch.ones(3, dtype=torch.bool), stream()).tolist() == [0, 1, 2]
    assert own_or_other(torch.zeros(3, dtype=torch.bool), stream()).shape == (3,)
