import pytest
import torch
from torch import nn

from condkd_ray.core.rng import Streams
from condkd_ray.models.generator import SMALLEST, Encoder, vae

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 6, 11), (3, 17, 9)]


def networks(shape, latent=5, width=8):
    with Streams(0).forked("init/replay"):
        return vae(latent, width, shape)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def weights(network):
    return sum(p.numel() for p in network.parameters())


def test_the_official_sizes_have_the_official_number_of_weights():
    encoder, decoder = networks((3, 32, 32), latent=1000, width=128)
    convolutions = (3 * 9 + 1) * 64 + (64 * 9 + 1) * 128 + (128 * 9 + 1) * 128
    assert weights(encoder) == convolutions + 2 * (64 + 128 + 128) + 2 * (32 * 8 * 8 + 1) * 1000
    assert round(weights(encoder) / 1e6, 2) == 4.32
    assert round(weights(decoder) / 1e6, 2) == 8.42


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decoded_images_have_the_size_of_the_encoded_ones(shape):
    encoder, decoder = networks(shape)
    mean, log_var = encoder(noise(4, *shape))
    assert mean.shape == log_var.shape == (4, 5)
    assert decoder(mean).shape == (4, *shape)


@pytest.mark.parametrize("shape", [(1, SMALLEST - 1, 8), (1, 8, SMALLEST - 1)], ids=str)
def test_images_below_the_smallest_side_cannot_be_encoded(shape):
    images = noise(4, *shape)
    with pytest.warns(UserWarning, match="zero-element"), pytest.raises(RuntimeError):
        Encoder(5, 8, shape)(images)


def test_the_sides_are_halved_three_times():
    sizes = []
    encoder, _ = networks((1, 24, 40))
    for layer in encoder.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    encoder(noise(2, 1, 24, 40))
    assert sizes == [(24, 40), (24, 40), (12, 20), (), ()]
    assert encoder.mean.in_features == 8 * 3 * 5


def test_the_encoding_does_not_depend_on_the_norms_of_an_images_columns():
    encoder, _ = networks((2, 8, 8))
    images = noise(4, 2, 8, 8)
    scaled = images * (1 + noise(4, 2, 1, 8).abs())
    torch.testing.assert_close(encoder.eval()(scaled), encoder(images))


def test_initial_weights_are_uniform_in_a_known_range_and_biases_are_0():
    for network in networks((3, 16, 16), latent=40, width=32):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                assert 0.95 * 0.08 < layer.weight.abs().max() <= 0.08
                assert layer.bias is None or not layer.bias.any()


def test_only_the_inner_normalisations_have_the_large_eps():
    encoder, decoder = networks((1, 8, 8))
    found = [[layer.eps for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)] for net in (encoder, decoder)]
    assert found == [[0.8, 0.8, 1e-5], [1e-5, 0.8, 0.8, 1e-5]]


def test_every_weight_of_the_encoder_has_a_gradient():
    encoder, _ = networks((3, 16, 16))
    mean, log_var = encoder(noise(8, 3, 16, 16))
    (mean * noise(8, 5)).sum().add((log_var * noise(8, 5)).square().sum()).backward()
    # A bias directly before a normalisation has no effect.
    effective = [
        p for name, p in encoder.named_parameters() if name not in ("start.0.bias", "start.3.bias", "end.0.bias")
    ]
    assert all(p.grad.abs().sum() > 0 for p in effective)


def test_outputs_are_float32_under_autocast():
    encoder, decoder = networks((1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var = encoder(noise(4, 1, 8, 8))
        assert {mean.dtype, log_var.dtype, decoder(mean).dtype} == {torch.float32}
