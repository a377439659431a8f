import pytest
import torch

from condkd_ray.core.method import InputError
from condkd_ray.methods.condensation import RandomReal
from methods.condensation.condensers import COUNTS, condense, real_samples


def test_images_are_real_ones_of_their_class():
    real, picked = real_samples(), condense(RandomReal(ipc=7))
    for image, label in zip(picked.images, picked.labels, strict=True):
        same = (real.images == image).flatten(1).all(1)
        assert real.labels[same].tolist() == [label]


def test_more_images_than_the_smallest_class_has_are_refused():
    assert len(condense(RandomReal(ipc=min(COUNTS)))) == min(COUNTS) * len(COUNTS)
    with pytest.raises(InputError, match="is 21; accepted: at most 20, the images of class 0"):
        condense(RandomReal(ipc=min(COUNTS) + 1))


def test_every_image_can_be_drawn():
    real = real_samples()
    drawn = torch.cat([condense(RandomReal(ipc=5), seed=seed).images for seed in range(60)])
    assert len(drawn.flatten(1).unique(dim=0)) == len(real)
