import pytest
import torch
from torchvision import models

from condkd_ray.core.method import InputError
from condkd_ray.models import MobileNetV2, Torchvision
from condkd_ray.models.mobilenet import InvertedResidual, rounded


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_number_of_parameters_is_torchvisions(classes):
    with torch.device("meta"):
        ours, theirs = (
            sum(p.numel() for p in network.build((3, 32, 32), classes).parameters())
            for network in (MobileNetV2(), Torchvision(model="mobilenet_v2"))
        )
    assert ours == theirs


@pytest.mark.parametrize(("width", "features"), [(25, 1280), (50, 1280), (75, 1280), (140, 1792)])
def test_the_width_multiplier_is_torchvisions(width, features):
    with torch.device("meta"):
        ours = MobileNetV2(width=width).build((3, 32, 32), 10)
        theirs = models.mobilenet_v2(weights=None, num_classes=10, width_mult=width / 100)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.get_parameter("classifier.weight").shape == (10, features)


@pytest.mark.parametrize(
    ("channels", "percent", "expected"), [(32, 100, 32), (24, 50, 16), (16, 1, 8), (24, 75, 24), (1280, 140, 1792)]
)
def test_channels_are_multiples_of_8_and_at_least_90_percent(channels, percent, expected):
    assert rounded(channels, percent) == expected


def test_a_block_has_a_shortcut_only_if_the_shape_is_the_same():
    maps = torch.randn(2, 8, 4, 4)
    for outputs, stride in ((8, 1), (8, 2), (16, 1)):
        block = InvertedResidual(8, outputs, stride, expansion=6)
        torch.nn.init.zeros_(list(block.branch)[-1].weight)  # type: ignore[arg-type]
        without_branch = block(maps)
        assert torch.equal(without_branch, maps) if (outputs, stride) == (8, 1) else not without_branch.any()


def test_a_width_of_0_is_refused():
    with pytest.raises(InputError, match=r"^mobilenet_v2 width is 0; accepted: 1 or more, in percent$"):
        MobileNetV2(width=0)
