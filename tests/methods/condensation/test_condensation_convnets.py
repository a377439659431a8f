import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condkd_ray.core.method import NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.condensation.condensation import convnet_for, train
from condkd_ray.models import ConvNet
from methods.condensation.condensers import NUM_CLASSES, real_samples


def fresh(seed: int = 0) -> nn.Module:
    with Streams(seed).forked("network"):
        return ConvNet(depth=2, width=8).build((3, 8, 8), NUM_CLASSES)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_trained_network_is_accurate_and_frozen():
    network = train(fresh(), real_samples(), epochs=8, batch=16, lr=0.05, momentum=0.9, rng=generator())
    other = real_samples(seed=1)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert (network(other.images).argmax(1) == other.labels).float().mean() > 0.9


@pytest.mark.parametrize("decays", [False, True])
def test_whole_batches_equal_plain_gradient_descent(decays: bool):
    """Compare three epochs of one step each with plain code."""
    real, network, plain = real_samples(), fresh().double(), fresh().double()
    real = type(real)(real.images.double(), real.labels, real.logits)
    train(network, real, epochs=3, batch=1000, lr=0.1, weight_decay=0.01, linear_decay=decays, rng=generator())
    for step in range(3):
        gradients = torch.autograd.grad(F.cross_entropy(plain(real.images), real.labels), list(plain.parameters()))
        lr = 0.1 * (1 - step / 3) if decays else 0.1
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= lr * (gradient + 0.01 * parameter)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_every_image_is_augmented_once_an_epoch():
    seen: list[torch.Tensor] = []
    ends: list[int] = []

    def augment(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images

    real = real_samples()

    def record_epoch() -> None:
        ends.append(len(seen))

    train(fresh(), real, epochs=2, batch=50, lr=0.01, augment=augment, on_epoch=record_epoch, rng=generator())
    assert ends == [3, 6]
    assert [len(part) for part in seen] == [39, 39, 38] * 2
    for epoch in (seen[:3], seen[3:]):
        sums = torch.cat(epoch).sum((1, 2, 3)).sort().values
        torch.testing.assert_close(sums, real.images.sum((1, 2, 3)).sort().values)
    assert not torch.equal(seen[0], seen[3])


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/training is not finite at step"):
        train(fresh(), real_samples(), epochs=3, batch=16, lr=1e30, rng=generator())


@pytest.mark.parametrize(("shape", "depth"), [((1, 4, 4), 1), ((1, 8, 8), 2), ((3, 16, 12), 2), ((3, 32, 32), 3)])
def test_tiny_images_get_fewer_blocks(shape: tuple[int, int, int], depth: int):
    network = convnet_for(shape, width=4, depth=3)
    assert (network.depth, network.width) == (depth, 4)
    assert network.build(shape, NUM_CLASSES)(torch.zeros(2, *shape)).shape == (2, NUM_CLASSES)
