import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models import Wrn
from condkd_ray.models.wrn import PreActivationBlock


@pytest.mark.parametrize(
    ("depth", "width", "published"), [(40, 2, 2.24e6), (16, 1, 0.18e6), (40, 1, 0.56e6), (16, 2, 0.69e6)]
)
def test_number_of_parameters_is_the_published_one(depth, width, published):
    with torch.device("meta"):
        counted = sum(p.numel() for p in Wrn(depth=depth, width=width).build((3, 32, 32), 10).parameters())
    assert counted == pytest.approx(published, abs=0.006e6)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 1), (4, 8, 2)])
def test_a_block_equals_a_plain_computation(inputs, outputs, stride):
    block = PreActivationBlock(inputs, outputs, stride).double()
    maps = torch.randn(3, inputs, 6, 6, dtype=torch.float64)

    def normalised(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        return (centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()).relu()

    active = normalised(maps)
    inner = normalised(F.conv2d(active, block.conv1.weight, stride=stride, padding=1))
    expected = F.conv2d(inner, block.conv2.weight, padding=1)
    same = stride == 1 and inputs == outputs
    expected = expected + (maps if same else F.conv2d(active, block.get_parameter("shortcut.weight"), stride=stride))
    torch.testing.assert_close(block(maps), expected)


def test_the_features_are_the_output_of_the_last_normalisation():
    module = Wrn(depth=10).build((1, 8, 8), 2)
    seen = []
    module.get_submodule("classifier").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nn.init.zeros_(module.get_parameter("bn.weight"))
    nn.init.constant_(module.get_parameter("bn.bias"), 3.0)
    module(torch.randn(4, 1, 8, 8))
    torch.testing.assert_close(seen[0], torch.full((4, 64), 3.0))


@pytest.mark.parametrize("depth", [4, 8, 18, -2])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(
        InputError, match=rf"^wrn depth is {depth}; accepted: 6n \+ 4, such as 10, 16, 40, at most 1202$"
    ):
        Wrn(depth=depth)


def test_a_width_of_0_is_refused():
    with pytest.raises(InputError, match=r"^wrn width is 0; accepted: 1 or more$"):
        Wrn(width=0)
