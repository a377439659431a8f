import pytest
import torch
import torch.nn.functional as F

from condkd_ray.core.method import InputError
from condkd_ray.models import ConvNet
from condkd_ray.models.convnet import ConvNetModule


def build(shape: tuple[int, int, int], **fields: int) -> ConvNetModule:
    module = ConvNet(**fields).build(shape, 10)
    assert isinstance(module, ConvNetModule)
    return module


@pytest.mark.parametrize(
    ("shape", "places"), [((3, 32, 32), 16), ((1, 28, 28), 16), ((1, 8, 8), 1), ((3, 64, 32), 32), ((3, 30, 30), 9)]
)
def test_number_of_parameters(shape, places):
    w = 8
    expected = (9 * shape[0] + 1) * w + 2 * (9 * w + 1) * w + 3 * 2 * w + (places * w + 1) * 10
    assert sum(p.numel() for p in build(shape, width=w).parameters()) == expected


def test_the_paper_has_2048_features():
    assert build((3, 32, 32)).embed(torch.randn(1, 3, 32, 32)).shape == (1, 2048)


@pytest.mark.parametrize(("shape", "padding"), [((3, 32, 32), 1), ((1, 28, 28), 3), ((1, 8, 8), 1)])
def test_embed_equals_a_plain_computation(shape, padding):
    module = build(shape, width=4)
    images = torch.randn(2, *shape)
    tensors = iter(module.parameters())
    maps = images
    for block in range(3):
        weight, bias, scale, offset = (next(tensors).view(-1, *tail) for tail in _tails(maps.shape[1]))
        maps = F.conv2d(maps, weight, bias.flatten(), padding=padding if block == 0 else 1)
        centred = maps - maps.mean((2, 3), keepdim=True)
        maps = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt() * scale + offset
        maps = maps.relu().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(module.embed(images), maps.flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(images), module.classifier(module.embed(images)))


def _tails(channels: int) -> list[tuple[int, ...]]:
    return [(channels, 3, 3), (), (1, 1), (1, 1)]


def test_the_features_of_an_image_do_not_depend_on_the_others_in_the_batch():
    module = build((1, 8, 8), width=4)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(module.embed(images)[:1], module.embed(images[:1]))


def test_a_constant_image_has_a_finite_gradient():
    images = torch.zeros(2, 1, 8, 8, requires_grad=True)
    build((1, 8, 8), width=4).embed(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize(("field", "value"), [("depth", 0), ("depth", 11), ("width", 0)])
def test_impossible_sizes_are_named(field, value):
    with pytest.raises(InputError, match=f"^convnet {field} is {value}; accepted: 1 "):
        ConvNet(**{field: value})
