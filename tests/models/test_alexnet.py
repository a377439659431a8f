import pytest
import torch
from torch import nn

from condkd_ray.models import AlexNet, AlexNetHalf


@pytest.mark.parametrize(
    ("network", "convs", "hidden"),
    [(AlexNet(), (48, 128, 192, 192, 128), (512, 256)), (AlexNetHalf(), (24, 64, 96, 96, 64), (256, 128))],
)
@pytest.mark.parametrize(("side", "left"), [(15, 1), (28, 2), (32, 3), (64, 7)])
def test_number_of_parameters(network, convs, hidden, side, left):
    kernels = (5, 5, 3, 3, 3)
    expected = sum(
        (inputs * kernel**2 + 1 + 2) * outputs
        for inputs, outputs, kernel in zip((3, *convs[:-1]), convs, kernels, strict=True)
    )
    expected += (convs[-1] * left**2 + 1 + 2) * hidden[0] + (hidden[0] + 1 + 2) * hidden[1] + (hidden[1] + 1) * 10
    with torch.device("meta"):
        assert sum(p.numel() for p in network.build((3, side, side), 10).parameters()) == expected


def test_the_named_layer_is_the_last_hidden_one_before_its_nonlinearity():
    module = AlexNetHalf().build((1, 28, 28), 10)
    layer = module.get_submodule("fc2")
    assert isinstance(layer, nn.Linear)
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args[2]))
    logits = module(torch.randn(4, 1, 28, 28))
    units = module.get_submodule("bn2")(seen[0].relu())
    torch.testing.assert_close(module.get_submodule("classifier")(units), logits)
    assert (seen[0] < 0).any()


def test_the_response_normalisation_is_krizhevskys():
    layer = next(m for m in AlexNet().build((1, 15, 15), 2).modules() if isinstance(m, nn.LocalResponseNorm))
    maps = torch.randn(1, 8, 1, 1, dtype=torch.float64) * 30
    channels = maps.flatten().tolist()
    for index, value in enumerate(channels):
        near = sum(other**2 for other in channels[max(0, index - 2) : index + 3])
        assert layer(maps)[0, index].item() == pytest.approx(value / (2 + 1e-4 * near) ** 0.75)


def test_blocks_with_response_normalisation_and_pooling():
    blocks = AlexNet().build((3, 32, 32), 10).get_submodule("blocks")
    kinds = [{type(layer) for layer in block.children()} for block in blocks.children()]
    assert [nn.LocalResponseNorm in kind for kind in kinds] == [True, True, False, False, False]
    assert [nn.MaxPool2d in kind for kind in kinds] == [True, True, False, False, True]
