"""Values collected in one forward pass, and the statistics of layer inputs."""

import guard  # noqa: F401 - tells PyTorch the shapes of an operator on meta
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, TEACHER, samples

from condkd_ray.core.rng import Streams
from condkd_ray.models.observation import PENULTIMATE, Observation, Observer, moments, to_inputs


@pytest.fixture
def network() -> nn.Module:
    """A network in eval mode whose BN statistics are not those of a new one."""
    with Streams(0).forked("init/teacher"):
        module = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    module.train()(samples(32).images)
    return module.eval()


def test_an_observer_collects_the_values_of_the_named_layers(network):
    images = samples(5).images
    seen = Observer(network, "classifier", layers=("stages.1", "conv"), bn=("bn",), input_means=("stages.0",))(images)
    maps = network.conv(images)
    stem = F.relu(network.bn(maps))
    assert torch.equal(seen.logits, network(images))
    torch.testing.assert_close(F.linear(seen.features, network.classifier.weight, network.classifier.bias), seen.logits)
    flat = maps.transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.bn, torch.stack([flat.mean(1), flat.var(1, correction=0)]))
    assert list(seen.taps) == ["stages.1", "conv"]
    assert torch.equal(seen.taps["conv"], maps)
    torch.testing.assert_close(seen.input_means, stem.mean((2, 3)))


def test_an_observer_without_names_collects_logits_and_features_alone(network):
    seen = Observer(network, "classifier")(samples(5).images)
    assert seen.bn.shape == (2, 0)
    assert seen.taps == {}
    assert seen.input_means is None
    assert seen.features.shape == (5, 4 * TEACHER.width)


def test_an_observer_shares_the_networks_weights_and_its_values_have_gradients(network):
    observer, images = Observer(network, "classifier", layers=("stages.0",)), samples(3).images.requires_grad_()
    first = observer(images)
    (gradient,) = torch.autograd.grad(first.taps["stages.0"].sum(), [images])
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        network.classifier.bias.add_(1)
    torch.testing.assert_close(observer(images).logits, first.logits + 1)


def test_an_observer_of_a_dtype_casts_the_weights_once_and_returns_float32(network):
    images = samples(4).images
    with torch.autocast("cpu", torch.bfloat16):
        wanted = Observer(network, "classifier", layers=("stages.1",))(images)
        seen = Observer(network, "classifier", layers=("stages.1",), dtype=torch.bfloat16)(images)
    assert {value.dtype for value in (seen.logits, seen.features, seen.taps["stages.1"])} == {torch.float32}
    torch.testing.assert_close(seen.logits, wanted.logits)
    assert network.conv.weight.dtype == torch.float32


def test_detached_values_are_the_same_without_a_graph():
    values = torch.randn(2, 3, requires_grad=True)
    seen = Observation(values * 1, values * 2, values * 3, {"a": values * 4}, values * 5)
    kept = seen.detach()
    both = zip((seen.logits, seen.features, seen.bn, seen.taps["a"], seen.input_means),
               (kept.logits, kept.features, kept.bn, kept.taps["a"], kept.input_means), strict=True)  # fmt: skip
    for before, after in both:
        assert torch.equal(before, after)
        assert before.requires_grad
        assert not after.requires_grad
    assert Observation(values, values, values).detach().input_means is None


def test_pooled_values_are_the_features_or_means_over_space():
    maps = torch.arange(16.0).view(1, 2, 2, 4)
    seen = Observation(maps[..., 0, 0], maps[..., 1, 1], maps.new_zeros(2, 0), {"maps": maps, "flat": maps[..., 0, 2]})
    assert seen.pooled(PENULTIMATE) is seen.features
    assert seen.pooled("maps").tolist() == [[3.5, 11.5]]
    assert torch.equal(seen.pooled("flat"), maps[..., 0, 2])


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 6), (7, 5, 3, 4), (2, 5, 3, 4, 2)], ids=str)
def test_moments_and_their_gradient(shape):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    flat = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(moments(values), (flat.mean(1), flat.var(1, correction=0)))
    assert torch.autograd.gradcheck(moments, values.requires_grad_())


@pytest.mark.parametrize("centre", [0.0, 3.0, 10.0])
def test_the_gradient_of_moments_in_half_precision_is_no_worse_than_its_rounding(centre):
    rng = torch.Generator().manual_seed(0)
    x = (centre + torch.randn(32, 4, 8, 8, generator=rng)).bfloat16()
    to_mean, to_var = 0.02 * torch.randn(4, generator=rng), torch.randn(4, generator=rng)
    exact = x.double()
    mean = exact.mean((0, 2, 3))
    wanted = to_inputs(exact, mean, to_mean.double(), to_var.double())
    found = to_inputs(x, mean.float(), to_mean, to_var)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


def test_moments_of_values_far_from_zero_keep_their_precision():
    values = 1000 + torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for found in (values, values.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(moments(found)[1], values.double().var((0, 2, 3), correction=0).float())
