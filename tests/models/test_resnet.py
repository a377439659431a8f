import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condkd_ray.core.config import content_hash, identity
from condkd_ray.core.method import InputError
from condkd_ray.models import ResNet, ResNet18, ResNet34, parse
from condkd_ray.models.network import label


@pytest.mark.parametrize(("depth", "width", "channels"), [(8, 16, 3), (14, 16, 1), (20, 4, 3)])
def test_number_of_parameters(depth, width, channels):
    n, w = (depth - 2) // 6, width

    def stage(c: int) -> int:
        """Number of parameters of a stage's 2n convolutions c -> c with BN."""
        return 2 * n * (9 * c * c + 2 * c)

    stem = 9 * channels * w + 2 * w
    # The first convolution of stages 2 and 3 reads half as many channels; each has a 1x1 shortcut with BN.
    narrower = sum(9 * c * c - 9 * c * c // 2 for c in (2 * w, 4 * w))
    shortcuts = sum(c * c // 2 + 2 * c for c in (2 * w, 4 * w))
    expected = stem + stage(w) + stage(2 * w) + stage(4 * w) - narrower + shortcuts + (4 * w + 1) * 10
    module = ResNet(depth=depth, width=width).build((channels, 32, 32), 10)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize("depth", [8, 14])
def test_depth_counts_the_layers_with_weights(depth):
    module = ResNet(depth=depth, width=4).build((1, 8, 8), 10)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3)]
    assert len(layers) == depth


def test_stages_halve_the_map_and_double_the_channels():
    module = ResNet(width=4).build((3, 32, 32), 10)
    shapes, handles = [], []
    for stage in module.get_submodule("stages").children():
        handles.append(stage.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:]))))
    module(torch.randn(2, 3, 32, 32))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


def test_a_block_is_the_identity_when_its_branch_is_zero():
    module = ResNet(width=4).build((1, 8, 8), 2)
    block = module.get_submodule("stages.0.0")
    nn.init.zeros_(block.get_submodule("bn2").weight)
    maps = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(maps), maps)


def test_he_initialisation():
    torch.manual_seed(0)
    weight = ResNet(width=64).build((3, 32, 32), 10).get_submodule("stages.2.0.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("depth", [-4, 2, 9, 18])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(
        InputError, match=rf"^resnet depth is {depth}; accepted: 6n \+ 2, such as 8, 14, 20, at most 1202$"
    ):
        ResNet(depth=depth)


@pytest.mark.parametrize(("network", "published"), [(ResNet18(), 11_173_962), (ResNet34(), 21_282_122)])
def test_the_number_of_parameters_is_that_of_the_usual_cifar_networks(network, published):
    with torch.device("meta"):
        assert sum(p.numel() for p in network.build((3, 32, 32), 10).parameters()) == published


@pytest.mark.parametrize(("network", "depth"), [(ResNet18(width=2), 18), (ResNet34(width=2), 34)])
def test_depth_counts_the_layers_with_weights_off_the_shortcuts(network, depth):
    modules = list(network.build((1, 8, 8), 10).modules())
    assert sum(isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3) for m in modules) == depth


@pytest.mark.parametrize("kind", [ResNet, ResNet18, ResNet34])
def test_a_width_of_0_is_refused(kind):
    with pytest.raises(InputError, match=rf"^{kind.name} width is 0; accepted: 1 or more$"):
        kind(width=0)


def test_a_shortcut_without_weights_takes_every_second_place_and_pads_channels_with_zeros():
    module = parse("resnet:a-8-4").build((1, 9, 9), 2)
    assert not any("shortcut" in name for name in module.state_dict())
    block = module.get_submodule("stages.1.0")
    nn.init.zeros_(block.get_submodule("bn2").weight)
    maps = torch.rand(2, 4, 9, 9)
    expected = F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    assert torch.equal(block(maps), expected)


def test_options_of_the_shortcut_have_labels_and_hashes():
    plain, padded = ResNet(depth=20, width=16), ResNet(depth=20, width=16, shortcut="a")
    assert (label(plain), label(padded)) == ("resnet-20-16", "resnet:a-20-16")
    assert (parse("resnet:b-20-16"), parse("resnet:a-20-16")) == (plain, padded)
    assert content_hash(plain) != content_hash(padded)
    assert "shortcut" not in identity(plain)
    with pytest.raises(InputError, match=r"^resnet shortcut is 'c'; accepted: b or a"):
        ResNet(shortcut="c")  # type: ignore[arg-type]


def test_padded_networks_of_odd_width_train():
    module = ResNet(depth=8, width=3, shortcut="a").build((1, 8, 8), 2)
    module(torch.randn(4, 1, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
