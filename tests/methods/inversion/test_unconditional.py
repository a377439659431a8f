"""Code shared by the unconditional inversions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import IMAGE_SHAPE

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.inversion.unconditional import fresh_images


def unlabelled(count):
    return torch.full((count,), UNLABELLED)


@settings(max_examples=50)
@given(batch=st.integers(2, 9), count=st.integers(2, 40))
def test_fresh_images_are_drawn_in_nearly_equal_parts_of_at_least_two(batch, count):
    parts = []

    def draw(labels):
        size = len(labels)
        parts.append(size)
        return torch.randn(size, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(size))

    made = fresh_images(draw, unlabelled(count), batch)
    assert sum(parts) == len(made) == count
    assert min(parts) >= 2
    assert max(parts) - min(parts) <= 1
    assert max(parts) <= 2 * batch


def test_fresh_images_have_no_labels_yet():
    leaf = torch.ones(1, requires_grad=True)
    made = fresh_images(lambda labels: leaf * torch.randn(len(labels), *IMAGE_SHAPE), unlabelled(20), 8)
    assert made.labels.eq(UNLABELLED).all()
    assert not made.has_logits
    assert not made.images.requires_grad


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_images_are_one_part_for_every_batch(count):
    parts = []
    fresh_images(
        lambda labels: parts.append(len(labels)) or torch.zeros(len(labels), *IMAGE_SHAPE), unlabelled(count), 2
    )
    assert parts == [count]
