import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models.cost import cost
from condkd_ray.models.generator import Generator, LayoutGenerator, UpsampledConv

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 7, 10), (1, 1, 1)]


def generator(shape, **settings):
    with Streams(0).forked("init/generator"):
        return Generator(6, 8, shape, **settings)


def latents(count=32):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_sigmoid_pixels_of_any_size_are_in_the_unit_range(shape):
    images = generator(shape)(latents())
    assert images.shape == (32, *shape)
    assert images.min() > 0
    assert images.max() < 1


@pytest.mark.parametrize("head", ["tanh_bn", "bn"])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_a_bn_at_the_end_gives_each_channel_mean_0_and_variance_1(shape, head):
    images = generator(shape, head=head)(latents())
    assert images.shape == (32, *shape)
    var, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(var, torch.ones(shape[0]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("head", ["sigmoid", "tanh_bn", "bn"])
def test_every_weight_and_latent_has_a_gradient(head):
    network, z = generator((3, 8, 8), head=head), latents().requires_grad_()
    (network(z) * torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all((p.grad.abs().sum() > 0) for name, p in network.named_parameters() if name != "end.3.bias")
    assert (z.grad.abs().sum(1) > 0).all()


def test_the_official_size_has_the_official_number_of_weights():
    # CMI and Fast: nz 256, 32x32x3; linear, BN, conv + BN, conv + BN, conv with bias.
    official = (256 + 1) * 128 * 64 + 2 * 128 + 128 * 128 * 9 + 2 * 128 + 128 * 64 * 9 + 2 * 64 + 64 * 3 * 9 + 3
    assert sum(p.numel() for p in Generator(256, 128, (3, 32, 32)).parameters()) == official


def test_only_the_inner_normalisations_have_the_large_eps_of_dafl():
    inner = [layer.eps for layer in generator((1, 8, 8), head="tanh_bn", eps=0.8).modules() if hasattr(layer, "eps")]
    assert inner == [1e-5, 0.8, 0.8, 1e-5]


def test_the_output_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        for head in ("sigmoid", "tanh_bn", "bn"):
            assert generator((1, 8, 8), head=head)(latents()).dtype == torch.float32


def as_published(network, z, size):
    """Compute images with the same weights in the published form, in which each upsampling precedes a convolution."""
    first, last = network.middle[0], network.end[3]
    rows, columns = (-(-side // 4) for side in size)
    maps = network.start(network.linear(z).view(len(z), -1, rows, columns))
    maps = F.interpolate(maps, size=[-(-side // 2) for side in size])
    maps = F.leaky_relu(network.middle[1](F.conv2d(maps, first.weight, padding=1)), 0.2)
    maps = F.interpolate(maps, size=size)
    maps = F.leaky_relu(network.end[1](F.conv2d(maps, network.end[0].weight, padding=1)), 0.2)
    return network.head(F.conv2d(maps, last.weight, last.bias, padding=1).float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 20), (7, 10), (6, 20)], ids=str)
def test_images_and_gradients_equal_those_of_the_published_form(channels, size):
    network, z = generator((channels, *size)).double(), latents().double().requires_grad_()
    leaves, draw = [z, *network.parameters()], torch.Generator().manual_seed(1)
    pull = torch.randn(32, channels, *size, generator=draw)
    found, wanted = [], []
    for images, kept in ((network(z), found), (as_published(network, z, size), wanted)):
        kept += [images, *torch.autograd.grad((images * pull).sum(), leaves)]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_upsampled_convolutions_use_four_of_nine_taps_if_both_sides_double():
    networks = generator((1, 12, 20)), generator((1, 6, 20)), generator((1, 7, 20))
    assert [(network.middle[0].taps, network.end[0].taps) for network in networks] == [(4, 4), (9, 4), (4, 9)]
    half, whole = UpsampledConv(4, 6, (3, 5), (6, 10)), UpsampledConv(4, 6, (3, 5), (6, 9))
    layers = [nn.Sequential(layer, nn.Flatten(), nn.Linear(size, 2)) for layer, size in ((half, 360), (whole, 324))]
    counted = [cost(layer, (4, 3, 5)).multiply_adds for layer in layers]
    assert counted == [6 * 60 * 4 * 4 + 360 * 2, 6 * 54 * 4 * 9 + 324 * 2]


def test_spectral_gives_every_convolution_norm_1_and_leaves_the_linear_layer():
    network = generator((3, 8, 8), spectral=True)
    for _ in range(50):
        network(latents())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-2)
    assert set(dict(network.linear.named_parameters())) == {"weight", "bias"}


def test_uniform_and_normal_initialisation():
    wide = {"uniform": 0.08 / 3**0.5, "normal": 0.02}
    for init, std in wide.items():
        with Streams(0).forked("init/generator"):
            network = Generator(32, 32, (3, 16, 16), init=init)
        for layer in (network.linear, network.middle[0], network.end[0]):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert init == "normal" or layer.weight.abs().max() <= 0.08
        assert (network.linear.bias == 0).all()
        assert (network.end[3].bias == 0).all()
        scales = torch.cat([network.start.weight, network.middle[1].weight, network.end[1].weight])
        assert scales.mean().item() == pytest.approx(1, abs=0.01)
        assert scales.std().item() == pytest.approx(0.02 if init == "normal" else 0, abs=0.005)


def test_the_default_initialisation_is_pytorchs():
    with Streams(0).forked("init/generator"):
        linear = nn.Linear(6, 8 * 4)
    assert torch.equal(generator((1, 8, 8)).linear.weight, linear.weight)


def test_four_upsamplings_have_the_channels_of_dfads_generator_for_segmentation():
    # GeneratorB at 128 pixels with ngf 64: linear, BN, four convolutions with BN (3x3 here, 4x4 there), last one.
    network = Generator(256, 128, (3, 128, 128), upsamplings=4)
    steps = [(512, 256), (256, 128), (128, 64), (64, 64)]
    expected = 257 * 512 * 64 + 2 * 512 + sum(9 * a * b + 2 * b for a, b in steps) + 9 * 64 * 3 + 3
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network.sizes == [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128)]


def test_two_upsamplings_are_the_default_and_equal_bit_for_bit():
    assert torch.equal(generator((3, 12, 20))(latents()), generator((3, 12, 20), upsamplings=2)(latents()))


@pytest.mark.parametrize("upsamplings", [2, 3, 4])
def test_sides_that_no_power_of_two_divides_are_generated(upsamplings):
    assert generator((3, 18, 25), upsamplings=upsamplings)(latents()).shape == (32, 3, 18, 25)


def test_fewer_than_two_upsamplings_are_refused():
    with pytest.raises(InputError, match=r"^upsamplings of a generator is 1; accepted: 2 or more$"):
        generator((3, 8, 8), upsamplings=1)


def layouts(shape=(12, 20), count=32):
    return torch.randint(0, 3, (count, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("upsamplings", [2, 3])
def test_every_weight_of_a_layout_generator_has_a_gradient(upsamplings):
    with Streams(0).forked("init/generator"):
        network = LayoutGenerator(6, 8, (3, 12, 20), 3, upsamplings=upsamplings)
    images = network(latents(), layouts())
    assert images.shape == (32, 3, 12, 20)
    (images * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_changed_label_changes_the_image_at_its_place_most():
    with Streams(0).forked("init/generator"):
        network = LayoutGenerator(6, 8, (3, 12, 20), 3).eval()
    labels = torch.zeros(1, 12, 20, dtype=torch.int64)
    other = labels.clone()
    other[:, :4, :4] = 1
    change = (network(latents(1), labels) - network(latents(1), other)).abs().sum(1)[0]
    assert change[:4, :4].mean() > 5 * change[8:, 12:].mean()


def test_a_pixel_without_a_class_adds_nothing():
    with Streams(0).forked("init/generator"):
        network = LayoutGenerator(6, 8, (3, 12, 20), 3).eval()
    images = network(latents(), torch.full((32, 12, 20), -1))
    assert torch.equal(images, network.body(latents()))
