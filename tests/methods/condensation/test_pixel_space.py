"""The detection of the space of pixels, and conversions between spaces."""

import math

import pytest
import torch
from torch import Tensor

from condkd_ray.core.samples import to_model
from condkd_ray.data.datasets import CONSTANTS
from condkd_ray.methods.condensation.pixel_space import (
    CERTAIN,
    GREY_VALUES,
    ImageStatistics,
    Space,
    evidence,
    image_statistics,
    known_spaces,
    plain,
)

MEAN, STD = CONSTANTS["cifar10"]
REAL = ImageStatistics(torch.zeros(3), 1.2, 0.93)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(grey: bool = True, count: int = 20) -> Tensor:
    """Return pixels (N, 3, 8, 8) in [0, 1] with mean and spread of photographs; with `grey`, in steps of 1 / 255."""
    rng = torch.Generator().manual_seed(0)
    unit = torch.tensor(MEAN).view(1, 3, 1, 1) + 0.24 * torch.randn(count, 3, 8, 8, generator=rng)
    return unit.clamp(0, 1).mul(255).round() / 255 if grey else unit


def ranked(pixels: Tensor) -> list[tuple[float, Space]]:
    found = [(evidence(pixels, space, REAL, MEAN, STD), space) for space in known_spaces(MEAN, STD)]
    return sorted(found, key=lambda pair: -pair[0])


CASES = {
    "unit": lambda unit: unit,
    "signed": lambda unit: 2 * unit - 1,
    "uint8": lambda unit: 255 * unit,
    "normalised": lambda unit: to_model(unit, MEAN, STD),
}


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_every_space_is_found(name: str, grey: bool):
    (best, space), *others = ranked(CASES[name](photos(grey)))
    assert (space.name, space.whose) == (name, "the teacher's")
    apart = min(best - nats for nats, other in others if other.differs(space, STD))
    assert apart > (GREY_VALUES / 2 if grey else 1)


def test_whole_grey_values_distinguish_similar_constants():
    (best, space), (next_best, _), *_ = ranked(to_model(photos(), *IMAGENET))
    assert space.whose == "imagenet's"
    assert best - next_best > GREY_VALUES / 2
    assert space.flags == "--condensed-mean 0.485 0.456 0.406 --condensed-std 0.229 0.224 0.225"


def test_images_normalised_twice_are_found():
    twice = to_model(to_model(photos(grey=False), MEAN, STD), MEAN, STD)
    (best, space), (next_best, _), *_ = ranked(twice)
    assert space.name == "twice"
    assert best - next_best > CERTAIN
    torch.testing.assert_close(space.convert(twice, MEAN, STD), to_model(photos(grey=False), MEAN, STD))


def test_a_spread_of_five_is_not_normalised_twice():
    (_, space), *_ = ranked(5 * to_model(photos(grey=False), MEAN, STD))
    assert space.name == "normalised"


def test_uint8_pixels_are_recognised():
    (_, space), *_ = ranked(photos().mul(255).to(torch.uint8))
    assert space.name == "uint8"


def test_conversions_of_spaces_are_those_of_earlier_versions():
    """They are equal bit for bit, because recorded numbers depend on them."""
    pixels = photos().mul(255).to(torch.uint8)
    assert torch.equal(plain("uint8", 3).convert(pixels, MEAN, STD), to_model(pixels.float() / 255, MEAN, STD))
    unit = photos(grey=False)
    assert torch.equal(plain("unit", 3).convert(unit, MEAN, STD), to_model(unit, MEAN, STD))
    assert torch.equal(Space("normalised", MEAN, STD).convert(unit, MEAN, STD), unit)
    signed = plain("signed", 3).convert(2 * unit - 1, MEAN, STD)
    torch.testing.assert_close(signed, to_model(unit, MEAN, STD), atol=1e-5, rtol=1e-5)


def test_each_space_is_listed_once():
    """With mean and deviation 0.5, the teacher's space is [-1, 1]. Constants have the data's number of channels."""
    halves = (0.5,) * 3
    assert [space.name for space in known_spaces(halves, halves)].count("signed") == 0
    for channels, mean, std in ((1, (0.3,), (0.3,)), (3, MEAN, STD)):
        found = known_spaces(mean, std)
        assert all(len(space.mean) == channels for space in found)
        assert len({(space.mean, space.std) for space in found}) == len(found)


def test_image_statistics():
    ramp = torch.arange(8.0).expand(2, 1, 8, 8)
    assert image_statistics(ramp).neighbours == pytest.approx(1)
    noise = torch.randn(50, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 3
    found = image_statistics(noise)
    assert abs(found.neighbours) < 0.05
    assert found.spread == pytest.approx(1, abs=0.05)
    assert found.mean.tolist() == pytest.approx([3, 3], abs=0.1)
    assert not math.isnan(image_statistics(torch.zeros(2, 1, 4, 4)).neighbours)
