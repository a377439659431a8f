"""Hooks read values inside networks and do not change the networks."""

import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models import ResNet
from condkd_ray.models.hooks import cast, over_space, sharing, spatial_layers, tapped, trace

SHAPE = (1, 8, 8)


@pytest.fixture
def network() -> nn.Module:
    with Streams(0).forked("hooks"):
        return ResNet(depth=8, width=4).build(SHAPE, 3).eval()


def own_network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


def test_a_tapped_output_is_that_of_its_layer_even_if_the_next_layer_works_in_place():
    first = nn.Conv2d(1, 2, 1)
    network = own_network(first, nn.ReLU(inplace=True))
    images = torch.linspace(-1, 1, 64).view(1, *SHAPE)
    with tapped(network, ["0"]) as taps:
        network(images)
    assert torch.equal(taps["0"], first(images))
    assert (taps["0"] < 0).any()


def test_tapped_outputs_are_float32_and_only_of_passes_within_the_block(network):
    network.double()
    with tapped(network, ["stages.0"]) as taps:
        network(torch.ones(2, *SHAPE, dtype=torch.float64))
    found = taps["stages.0"]
    assert found.dtype == torch.float32
    network(torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert taps["stages.0"] is found


def test_a_layer_that_returns_no_tensor_has_no_tap():
    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    with tapped(network := own_network(Pair()), ["0"]) as taps:
        network(torch.zeros(1, *SHAPE))
    assert taps == {}


def test_a_sharing_copy_has_the_same_tensors_in_new_modules(network):
    copied = sharing(network)
    own = {id(module) for module in network.modules()}
    assert not own & {id(module) for module in copied.modules()}
    assert [id(tensor) for tensor in copied.state_dict(keep_vars=True).values()] == [
        id(tensor) for tensor in network.state_dict(keep_vars=True).values()
    ]
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert not next(copied.parameters()).any()


def test_cast_changes_only_convolutions_and_linear_layers(network):
    found = cast(network, torch.bfloat16)
    assert found is network
    for layer in network.modules():
        kind = torch.bfloat16 if isinstance(layer, nn.Conv2d | nn.Linear) else torch.float32
        for parameter in layer.parameters(recurse=False):
            assert parameter.dtype == kind
            assert parameter.requires_grad == (kind == torch.float32)


def test_spatial_layers_are_those_with_more_than_one_position():
    network = own_network(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    network.train()
    assert spatial_layers(network, SHAPE) == ["0"]
    assert all(module.training for module in network.modules())


def test_a_trace_names_layers_in_the_order_in_which_they_run(network):
    found = trace(network, 3, SHAPE)
    assert found.classifier is network.classifier
    assert found.weighted[0] == "conv"
    assert set(found.bn) <= set(found.tappable)
    assert list(found.stages) == [f"stages.{number}" for number in range(3)]
    assert [found.stages[name] for name in ("stages.1", "stages.2")] == [4, 8]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (nn.Flatten(), nn.Linear(64, 4)),
            r"shape of the teacher's output for 2 images is \(2, 4\); accepted: \(2, 3\)",
        ),
        ((nn.Flatten(), nn.Linear(9, 3)), r"cannot read images of shape \(1, 8, 8\)"),
        ((nn.Conv2d(1, 3, 8), nn.Flatten()), "last linear layer of the teacher is None; accepted: a torch.nn.Linear"),
    ],
)
def test_networks_that_do_not_classify_these_images_are_refused(layers, message):
    with pytest.raises(InputError, match=message):
        trace(own_network(*layers), 3, SHAPE)


def test_over_space_returns_means_per_channel():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert over_space(x).tolist() == [[5.5, 17.5]]
    assert over_space(x[:, :, 0, 0]).tolist() == [[0.0, 12.0]]
