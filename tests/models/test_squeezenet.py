import pytest
import torch
from torchvision import models

from condkd_ray.core.method import InputError
from condkd_ray.models import SqueezeNet
from condkd_ray.models.squeezenet import Fire


def weights(module: torch.nn.Module) -> int:
    """Return the number of weights without biases and normalisation."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def test_the_number_of_weights_is_the_papers_except_for_the_smaller_stem():
    with torch.device("meta"):
        paper = models.squeezenet1_0(num_classes=10)
        ours = SqueezeNet().build((3, 32, 32), 10)
    assert weights(ours) == weights(paper) - (7 * 7 - 3 * 3) * 3 * 96


def test_a_fire_module_expands_both_ways():
    fire = Fire(3, 2).eval()
    torch.nn.init.zeros_(fire.expand3.weight)
    maps = fire(torch.randn(2, 3, 5, 5))
    assert maps.shape == (2, 16, 5, 5)
    assert maps[:, :8].any()
    assert not maps[:, 8:].any()


def test_a_width_of_0_is_refused():
    with pytest.raises(InputError, match=r"^squeezenet width is 0; accepted: 1 or more$"):
        SqueezeNet(width=0)
