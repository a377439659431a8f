"""What several inversions share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import IMAGE_SHAPE

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.inversion.inversion import Lowest, fresh_images


@given(losses=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8))
def test_the_values_of_the_first_lowest_loss_are_kept(losses):
    lowest = Lowest()
    for number, loss in enumerate(losses):
        lowest.offer(torch.tensor(loss, requires_grad=True), torch.full((2, 3), float(number)), torch.tensor(number))
    images, number = lowest.kept
    assert number == losses.index(min(losses))
    assert (images == number).all()
    assert not images.requires_grad


def test_what_is_kept_is_a_copy():
    lowest, leaf = Lowest(), torch.ones(3, requires_grad=True)
    lowest.offer(torch.tensor(1.0), leaf)
    with torch.no_grad():
        leaf.zero_()
    lowest.offer(torch.tensor(2.0), leaf)
    assert torch.equal(lowest.kept[0], torch.ones(3))


@settings(max_examples=50)
@given(batch=st.integers(2, 9), count=st.integers(2, 40))
def test_fresh_images_come_in_near_equal_parts_never_one_alone(batch, count):
    parts = []

    def draw(size):
        parts.append(size)
        return torch.randn(size, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(size))

    made = fresh_images(draw, count, batch)
    assert sum(parts) == len(made) == count
    assert min(parts) >= 2
    assert max(parts) - min(parts) <= 1
    assert max(parts) <= 2 * batch


def test_fresh_images_wait_for_their_labels():
    leaf = torch.ones(1, requires_grad=True)
    made = fresh_images(lambda size: leaf * torch.randn(size, *IMAGE_SHAPE), 20, 8)
    assert made.labels.eq(UNLABELLED).all()
    assert not made.asked
    assert not made.images.requires_grad


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_images_are_one_part_whatever_the_batch(count):
    parts = []
    fresh_images(lambda size: parts.append(size) or torch.zeros(size, *IMAGE_SHAPE), count, 2)
    assert parts == [count]
