import pytest
import torch
from torch import nn

from condkd_ray.networks.discriminator import FeatureDiscriminator
from condkd_ray.streams import Streams

RNG = torch.Generator().manual_seed(0)


def discriminator(spectral):
    with Streams(0).forked("init/guide"):
        return FeatureDiscriminator(16, 5, hidden=(32, 8), spectral=spectral)


def test_gives_one_judgement_and_the_classes():
    judged, classes = discriminator(True)(torch.randn(7, 16))
    assert judged.shape == (7,)
    assert classes.shape == (7, 5)


@pytest.mark.parametrize("spectral", [True, False])
def test_spectral_normalisation_bounds_how_fast_the_judgement_changes(spectral):
    network = discriminator(spectral)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                weight = layer.parametrizations.weight.original if spectral else layer.weight
                weight.mul_(20)
        for _ in range(200):
            network(torch.zeros(2, 16))
        x, y = torch.randn(2, 500, 16, generator=RNG)
        change = (network(x)[0] - network(y)[0]).abs() / (x - y).norm(dim=1)
    assert (change.max() <= 1.001) == spectral


def test_judgements_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert {answer.dtype for answer in discriminator(True)(torch.randn(4, 16))} == {torch.float32}
