import re
from typing import Annotated, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter
from torch import nn

from condkd_ray.method import InputError
from condkd_ray.networks import AnyNetwork, ConvNet, LeNet5, LeNet5Half, ResNet, label, parse
from condkd_ray.streams import Streams

NETWORKS = [LeNet5(), LeNet5Half(), ResNet(), ResNet(depth=14, width=4), ConvNet(width=8), ConvNet(depth=2, width=4)]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 16, 20), (3, 64, 64)]

any_network = st.one_of(
    st.just(LeNet5()),
    st.just(LeNet5Half()),
    st.builds(lambda n, w: ResNet(depth=6 * n + 2, width=w), st.integers(1, 30), st.integers(1, 4096)),
    st.builds(lambda d, w: ConvNet(depth=d, width=w), st.integers(1, 10), st.integers(1, 4096)),
)


def test_every_member_of_the_union_is_tried():
    assert {type(network) for network in NETWORKS} == set(get_args(AnyNetwork))


@pytest.mark.parametrize("network", NETWORKS, ids=label)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_become_finite_logits_by_a_last_linear_layer(network, shape):
    if min(shape[1:]) < network.min_size:
        pytest.skip("refused, see below")
    module = network.build(shape, 7)
    logits = module(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    last = list(module.modules())[-1]
    assert isinstance(last, nn.Linear)
    assert last.out_features == 7


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_the_smallest_side_is_read_and_one_less_refused(network):
    side = network.min_size
    module = network.build((1, side, side + 1), 2)
    assert module(torch.randn(2, 1, side, side + 1)).isfinite().all()
    expected = (
        f"network {label(network)} on images of {side - 1}x{side}: "
        f"smallest side is {side - 1}; accepted: {side} or more"
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        network.build((1, side - 1, side), 2)


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_the_gradient_reaches_images_and_every_parameter(network):
    module = network.build((1, 28, 28), 4)
    images = torch.randn(8, 1, 28, 28, requires_grad=True)
    module(images).square().sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_equal_streams_build_equal_weights(network):
    def build(seed: int) -> list[torch.Tensor]:
        with Streams(seed).forked("init/student"):
            return list(network.build((1, 28, 28), 4).parameters())

    assert all(torch.equal(a, b) for a, b in zip(build(0), build(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(build(0), build(1), strict=True))


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_channels_last_gives_the_same_logits(network):
    module = network.build((3, 32, 32), 4).eval()
    images = torch.randn(2, 3, 32, 32)
    plain = module(images)
    module.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(images.contiguous(memory_format=torch.channels_last)), plain)


@given(any_network)
def test_parse_undoes_label(network):
    assert parse(label(network)) == network


@given(any_network)
def test_the_union_survives_a_tree(network):
    adapter = TypeAdapter(Annotated[AnyNetwork, Field(discriminator="name")])
    assert adapter.validate_python(adapter.dump_python(network)) == network


def test_parse_fills_in_defaults():
    assert parse("resnet") == ResNet()
    assert parse("resnet-14") == ResNet(depth=14)
    assert parse("convnet-3-32") == ConvNet(depth=3, width=32)
    assert parse("lenet5_half") == LeNet5Half()


@pytest.mark.parametrize(
    "text",
    ["", "./x.pt", "vgg-11", "resnet18", "resnet-", "resnet--8", "resnet-8-16-3", "lenet5-2", "resnet-²", " resnet"],
)
def test_parse_refuses_what_spells_no_network(text):
    expected = f"network is {text!r}; accepted: lenet5, lenet5_half, resnet-DEPTH-WIDTH, convnet-DEPTH-WIDTH"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        parse(text)


@settings(max_examples=50)
@given(st.sampled_from(["lenet5", "resnet", "convnet", "vgg"]), st.lists(st.integers(-1, 10**7), max_size=3))
def test_parse_answers_any_text_with_a_network_or_an_input_error(name, numbers):
    text = "-".join([name, *map(str, numbers)])
    try:
        network = parse(text)
    except InputError:
        return
    assert label(network).startswith(text)
