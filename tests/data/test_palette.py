"""Colours of classes in pictures of masks."""

import numpy as np
import pytest
import torch

from condkd_ray.core.samples import UNLABELLED
from condkd_ray.data import palette
from condkd_ray.data.palette import MOST, coloured, colours

KINDS = ("normal vision", "protanopia", "deuteranopia")


def test_each_class_has_its_own_colour_whatever_the_number_of_classes():
    whole = colours(MOST)
    assert whole.shape == (MOST, 3)
    assert whole.dtype == torch.uint8
    assert len({tuple(row) for row in whole.tolist()}) == MOST
    assert torch.equal(colours(5), whole[:5])
    assert torch.equal(colours(MOST + 2)[MOST:], whole[:2])


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_colours_of_many_classes_differ_from_one_another_and_from_black(kind):
    """About 0.02 is just noticeable in OKLab."""
    rgb = torch.cat([torch.zeros(1, 3), colours(32).float()]).numpy()
    lab = palette._lab(rgb)[kind]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(len(lab))
    assert distances.min() > 0.03
    assert distances[:, 0][1:].min() > 0.25


def test_oklab_of_white_and_red_are_those_of_its_author():
    """Ottosson's reference values of sRGB white and of the red primary."""
    found = palette._lab(np.array([[255.0, 255, 255], [255, 0, 0]]))[0]
    np.testing.assert_allclose(found, [[1, 0, 0], [0.62796, 0.22486, 0.12585]], atol=1e-4)


def test_masks_become_pictures_and_pixels_without_a_class_are_black():
    masks = torch.tensor([[[0, 2, UNLABELLED], [1, 1, MOST]]], dtype=torch.int16)
    found, wanted = coloured(masks), colours(3)
    assert found.shape == (1, 3, 2, 3)
    assert found.dtype == torch.uint8
    for (row, column), number in {(0, 0): 0, (0, 1): 2, (1, 0): 1, (1, 1): 1, (1, 2): 0}.items():
        assert torch.equal(found[0, :, row, column], wanted[number])
    assert found[0, :, 0, 2].tolist() == [0, 0, 0]
