import re
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import prod
from typing import Annotated, Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter
from torch import nn
from toy import make_teacher

from condkd_ray.core.families import register
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.inversion import Dafl, Fast, Nayer, PreDfkd
from condkd_ray.models import NETWORKS as FAMILY
from condkd_ray.models import (
    AlexNet,
    AlexNetHalf,
    AnyNetwork,
    ConvNet,
    DeepLabMobileNetV2,
    DeepLabResNet,
    LeNet5,
    LeNet5Half,
    MobileNetV2,
    ResNet,
    ResNet18,
    ResNet34,
    SqueezeNet,
    Torchvision,
    Vgg11,
    Wrn,
    parse,
)
from condkd_ray.models import network as network_module
from condkd_ray.models.cost import cost_of
from condkd_ray.models.network import Network, label, seeded_module
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.torchvision import SEGMENTATION, SMALLEST

NETWORKS: list[AnyNetwork] = [
    *(LeNet5(), LeNet5Half(), ResNet(), ResNet(depth=14, width=4), ConvNet(width=8), ConvNet(depth=2, width=4)),
    *(AlexNet(), AlexNetHalf(), ResNet18(width=4), ResNet34(width=4), Wrn(depth=10), Wrn(width=2), Vgg11(width=4)),
    *(MobileNetV2(width=20), SqueezeNet(width=4), Torchvision(model="shufflenet_v2_x0_5")),
    *(DeepLabResNet(width=4), DeepLabMobileNetV2(width=20), Torchvision(model="lraspp_mobilenet_v3_large")),
]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 16, 20), (3, 64, 64)]
WIDE = (ResNet18, ResNet34, Vgg11, MobileNetV2, SqueezeNet, DeepLabMobileNetV2)

any_network = st.one_of(
    st.just(LeNet5()),
    st.just(LeNet5Half()),
    st.builds(lambda n, w: ResNet(depth=6 * n + 2, width=w), st.integers(1, 30), st.integers(1, 4096)),
    st.builds(lambda d, w: ConvNet(depth=d, width=w), st.integers(1, 10), st.integers(1, 4096)),
    st.sampled_from([AlexNet(), AlexNetHalf()]),
    st.builds(lambda n, w: Wrn(depth=6 * n + 4, width=w), st.integers(1, 30), st.integers(1, 64)),
    *(st.builds(lambda w, kind=kind: kind(width=w), st.integers(1, 4096)) for kind in WIDE),
    st.builds(lambda n, w: DeepLabResNet(depth=6 * n + 2, width=w), st.integers(1, 30), st.integers(1, 4096)),
    st.builds(lambda model: Torchvision(model=model), st.sampled_from(sorted(SMALLEST | SEGMENTATION))),
)


def dense(network: Network) -> bool:
    return network.tasks == ("segmentation",)


def test_every_member_of_the_union_is_tested():
    assert {type(network) for network in NETWORKS} == set(get_args(AnyNetwork))


@pytest.mark.parametrize("network", NETWORKS, ids=label)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_last_layer_returns_finite_logits(network, shape):
    if min(shape[1:]) < network.min_size:
        pytest.skip("refused, see below")
    module = network.build(shape, 7)
    logits = module(torch.randn(3, *shape))
    assert logits.shape == ((3, 7, *shape[1:]) if dense(network) else (3, 7))
    assert logits.isfinite().all()
    last = list(module.modules())[-1]
    assert isinstance(last, nn.Conv2d if dense(network) else nn.Linear)
    assert len(last.weight) == 7


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_the_smallest_side_is_accepted_and_one_less_refused(network):
    side = network.min_size
    module = network.build((1, side, side + 1), 2)
    assert module(torch.randn(2, 1, side, side + 1)).isfinite().all()
    expected = (
        f"network {label(network)} on images of {side - 1}x{side}: "
        f"smallest side is {side - 1}; accepted: {side} or more"
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        network.build((1, side - 1, side), 2)


@pytest.mark.parametrize("network", [ResNet(width=10**6), Wrn(width=2**63), Vgg11(width=10**20)], ids=label)
def test_weights_that_do_not_fit_into_memory_are_refused(network):
    expected = r"'(inf|\d+\.\d GB)'; accepted: less than the \d+\.\d GB that are free"
    with pytest.raises(InputError, match=f"^memory for the weights of {label(network)} is {expected}$"):
        network.build((3, 32, 32), 10)


@pytest.mark.parametrize("network", [*NETWORKS, Torchvision(model="regnet_x_400mf")], ids=label)
def test_weights_are_refused_unless_they_are_smaller_than_the_free_memory(monkeypatch, network):
    size = sum(parameter.nbytes for parameter in network.build((3, 32, 32), 4).parameters())
    monkeypatch.setattr(network_module, "free_bytes", lambda device: size + 1)
    network.build((3, 32, 32), 4)
    monkeypatch.setattr(network_module, "free_bytes", lambda device: size)
    with pytest.raises(InputError, match=f"^memory for the weights of {label(network)} is "):
        network.build((3, 32, 32), 4)


def test_the_widening_factor_of_a_wrn_is_checked_too(monkeypatch):
    monkeypatch.setattr(network_module, "free_bytes", lambda device: 40 * 10**9)
    with pytest.raises(InputError, match=r"^memory for the weights of wrn-16-256 is '44\.8 GB'; accepted: "):
        Wrn(width=256).build((3, 32, 32), 10)


@pytest.mark.parametrize("kind", [Fast, Dafl, Nayer, PreDfkd])
def test_a_generator_that_fits_no_memory_is_refused(kind):
    with pytest.raises(InputError, match=r"^memory for the weights of generator is '\d+\.\d GB'; accepted: "):
        kind(width=10**7).init(make_teacher(), Streams(0))


@cache
def kernel() -> torch.Tensor:
    """Return a tensor that is made once and used by all modules, such as a blur."""
    return torch.ones(1, 1, 3, 3) / 9


class Blurred(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 2))
        self.register_buffer("kernel", kernel())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.conv2d(images, self.kernel))


def test_a_network_of_another_package_that_keeps_a_tensor_of_its_first_module_is_built():
    @dataclass(frozen=True, kw_only=True)
    class Keeping(Network):
        name: str = "keeping"

        def _build(self, image_shape, num_classes):
            return Blurred()

    kernel.cache_clear()
    assert Keeping().build((1, 8, 8), 2).kernel.sum() == pytest.approx(1.0)
    kernel.cache_clear()
    assert seeded_module(Blurred, "init/guide", torch.device("cpu"), Streams(0)).kernel.sum() == pytest.approx(1.0)


def test_costs_of_a_network_that_fits_no_memory_are_counted():
    assert cost_of(ResNet(width=10**6), (3, 32, 32), 10).parameters > 10**14


def test_a_network_whose_constructor_reads_its_weights_is_built():
    @dataclass(frozen=True, kw_only=True)
    class Reading(Network):
        name: str = "reading"

        def _build(self, image_shape, num_classes):
            module = nn.Sequential(nn.Flatten(), nn.Linear(prod(image_shape), num_classes))
            module[1].weight.data /= float(module[1].weight.detach().abs().max())
            return module

    assert Reading().build((1, 8, 8), 2)[1].weight.detach().abs().max() == pytest.approx(1.0)


def sized() -> type[Network]:
    @dataclass(frozen=True, kw_only=True)
    class IntNet(Network):
        name: Literal["intnet"] = "intnet"
        size: int

        def _build(self, image_shape, num_classes):
            raise NotImplementedError

    return IntNet


def worded() -> type[Network]:
    @dataclass(frozen=True, kw_only=True)
    class WordNet(Network):
        name: Literal["wordnet"] = "wordnet"
        kind: Literal["a", "b"]

        def _build(self, image_shape, num_classes):
            raise NotImplementedError

    return WordNet


@pytest.mark.parametrize(("make", "field"), [(sized, "field size is .*int"), (worded, "field kind is .*'b'")])
def test_a_plug_in_network_with_a_field_without_a_default_is_refused(make, field):
    with pytest.raises(InputError, match=rf"{field}.* without a default.; accepted: .*, with a default"):
        register(make())


def test_each_network_is_spelled_by_its_name_alone():
    for name, kind in FAMILY.members().items():
        assert parse(name) == kind(name=name)


def test_the_memory_check_of_a_wide_network_draws_no_random_number():
    torch.manual_seed(0)
    found = ResNet(width=258).build((1, 8, 8), 2).conv.weight
    torch.manual_seed(0)
    expected = ResNet(width=258)._build((1, 8, 8), 2).conv.weight
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("kind", "depth"), [(ResNet, 1208), (Wrn, 1204), (ResNet, 2**31 // 6 * 6 + 2)])
def test_too_large_depths_are_refused(kind, depth):
    with pytest.raises(InputError, match=rf"depth is {depth}; accepted: 6n .*at most 1202$"):
        kind(depth=depth)


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
    # In double precision, the order of a sum, which the memory format may change, moves no logit beyond the tolerance.
    module = network.build((3, 32, 32), 4).eval().double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = module(images)
    module.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(images.contiguous(memory_format=torch.channels_last)), plain)


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_training_draws_nothing_from_the_global_generator(network):
    module = network.build((1, 28, 28), 4).train()
    images = torch.randn(2, 1, 28, 28)
    before = torch.get_rng_state()
    module(images).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_a_step_of_training_leaves_finite_logits_also_in_bfloat16(network):
    torch.manual_seed(0)
    module = network.build((3, 32, 32), 4)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, nesterov=True)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = module(images)
        target = labels[:, None, None].expand(8, 32, 32) if dense(network) else labels
        losses.append(nn.functional.cross_entropy(logits.float(), target))
        assert logits.dtype == precision
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in module.parameters())
    assert torch.stack(losses).isfinite().all()
    assert losses[0] != losses[1]


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_a_network_can_be_used_as_a_teacher(network):
    module = network.build((1, 28, 28), 4)
    teacher = Teacher.from_module(module, num_classes=4, image_shape=(1, 28, 28), mean=[0.1], std=[0.3])
    images = torch.randn(2, 1, 28, 28)
    last = list(teacher.network.modules())[-1]
    with torch.no_grad():
        seen = teacher.observe(images)
        assert seen.features.shape[:2] == (2, teacher.num_features)
        assert teacher.task == network.tasks[0]
        if network.name != "torchvision" or not dense(network):  # LRASPP adds the logits of two layers
            logits = last(seen.features)
            resized = F.interpolate(logits, size=(28, 28), mode="bilinear") if dense(network) else logits
            torch.testing.assert_close(resized, teacher.logits(images))
    normalising = [layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(teacher.bn_inputs) == len(normalising)
    assert seen.bn.shape == teacher.bn[0].shape


TAPS = [
    (AlexNetHalf(), {"blocks.0": (24, 15, 15), "blocks.4": (64, 3, 3), "fc2": (128,)}),
    (LeNet5(), {"fc2": (84,), "9": (84,)}),
    (LeNet5Half(), {"fc2": (42,)}),
    (ResNet18(width=2), {"stages.0": (2, 32, 32), "stages.3": (16, 4, 4)}),
    (ResNet34(width=2), {"stages.0": (2, 32, 32), "stages.3": (16, 4, 4)}),
    (Wrn(depth=10), {"stages.0": (16, 32, 32), "stages.2": (64, 8, 8)}),
    (Vgg11(width=2), {"stages.0": (2, 32, 32), "stages.3": (16, 4, 4), "stages.4": (16, 4, 4)}),
    (MobileNetV2(width=10), {"stages.0": (8, 32, 32), "stages.2": (8, 16, 16), "stages.6": (32, 4, 4)}),
    (SqueezeNet(width=1), {"stages.0": (16, 16, 16), "stages.1": (32, 8, 8), "stages.2": (32, 4, 4)}),
    (DeepLabResNet(width=2), {"stages.0": (2, 16, 16), "stages.1": (4, 8, 8), "stages.2": (8, 8, 8)}),
    (DeepLabMobileNetV2(width=10), {"stages.1": (8, 16, 16), "stages.2": (8, 8, 8), "stages.6": (32, 4, 4)}),
]


@pytest.mark.parametrize(("network", "shapes"), TAPS, ids=[label(network) for network, _ in TAPS])
def test_stages_can_be_tapped_by_name(network, shapes):
    module = network.build((3, 32, 32), 4)
    teacher = Teacher.from_module(module, num_classes=4, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3)
    taps = teacher.observe(torch.randn(2, 3, 32, 32), list(shapes)).taps
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == shapes


RGB = {"image_shape": (3, 32, 32), "mean": [0.5] * 3, "std": [0.2] * 3}
SHUFFLENET = ("conv1.1", *(f"stage{i}.0.branch1.1" for i in (2, 3, 4)))
STAGES = [
    (AlexNetHalf(), {"blocks.0.4": 24, "blocks.1.4": 64, "blocks.4.3": 64, "bn1": 256}),
    (ResNet(width=4), {"stages.0": 4, "stages.1": 4, "stages.2": 8}),
    (ResNet18(width=2), {"stages.0": 2, "stages.1": 2, "stages.2": 4, "stages.3": 8}),
    (Wrn(depth=10, width=2), {"stages.0": 16, "stages.1": 32, "stages.2": 64}),
    (Vgg11(width=2), {"stages.1": 2, "stages.2": 4, "stages.3": 8, "stages.4": 16}),
    (MobileNetV2(width=10), {f"stages.{i}": 8 if i < 5 else 16 for i in range(7)}),
    (SqueezeNet(width=1), {"stages.0": 6, "stages.1": 16, "stages.2": 32}),
    (Torchvision(model="resnet18"), {"layer1": 64, "layer2": 64, "layer3": 128, "layer4": 256}),
    (Torchvision(model="shufflenet_v2_x0_5"), dict(zip(SHUFFLENET, (24, 24, 48, 96), strict=True))),
    (ConvNet(width=4), {}),
    (DeepLabResNet(width=4), {"stages.0": 4, "stages.1": 4, "stages.2": 8}),
    (Torchvision(model="fcn_resnet50"), {f"backbone.layer{i + 1}": n for i, n in enumerate((64, 256, 512, 1024))}),
]


@pytest.mark.parametrize(("network", "stages"), STAGES, ids=[label(network) for network, _ in STAGES])
def test_stage_inputs_are_the_numbers_of_channels_at_the_input_of_each_stage(network, stages):
    teacher = Teacher.from_module(network.build((3, 32, 32), 4), num_classes=4, **RGB)
    assert teacher.stage_inputs == stages
    seen = teacher.observe(torch.randn(2, 3, 32, 32), input_means=tuple(stages))
    assert stages == {} or seen.input_means.shape == (2, sum(stages.values()))


ENDS = [
    (ConvNet(width=4), ("blocks.0.2", "blocks.1.2", "blocks")),
    (ResNet(width=4), ("stages.0", "stages.1")),
    (ResNet18(width=2), ("stages.0", "stages.1", "stages.2")),
    (Wrn(depth=10, width=2), ("stages.0", "stages.1", "stages.2")),
    (Vgg11(width=2), ("stages.0", "stages.1", "stages.2", "stages.3")),
    (MobileNetV2(width=10), tuple(f"stages.{i}" for i in range(7))),
    (Torchvision(model="resnet18"), ("layer1", "layer2", "layer3")),
    (DeepLabResNet(width=4), ("stages.0", "stages.1", "stages.2")),
    (Torchvision(model="fcn_resnet50"), tuple(f"backbone.layer{i}" for i in (1, 2, 3, 4))),
]
"""Ends of stages, without layers whose spatial means equal those of a later layer or the last linear layer's input."""


@pytest.mark.parametrize(("network", "ends"), ENDS, ids=[label(network) for network, _ in ENDS])
def test_stage_outputs_are_the_last_layers_of_the_stages(network, ends):
    teacher = Teacher.from_module(network.build((3, 32, 32), 4), num_classes=4, **RGB)
    assert teacher.stage_outputs == ends
    seen = teacher.observe(torch.randn(2, 3, 32, 32), ends)
    assert all(seen.taps[name].ndim == 4 for name in ends)


@pytest.mark.parametrize("kind", get_args(AnyNetwork), ids=lambda kind: kind.__name__)
def test_no_two_stages_have_the_same_means(kind):
    teacher = Teacher.from_module(kind().build((3, 32, 32), 4), num_classes=4, **RGB)
    seen = teacher.observe(torch.randn(2, 3, 32, 32), teacher.stage_outputs, bn=False)
    means = [seen.features, *(seen.pooled(name) for name in teacher.stage_outputs)]
    for one, other in combinations(means, 2):
        assert one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_layers_that_cmi_compares_have_the_official_widths():
    """The two networks are the teachers of the official scripts."""
    for network, stages, bn in ((ResNet34(), [64, 64, 128, 256], 8512), (Wrn(depth=40, width=2), [16, 32, 64], 2704)):
        teacher = Teacher.from_module(network.build((3, 32, 32), 10), num_classes=10, **RGB)
        assert list(teacher.stage_inputs.values()) == stages
        assert sum(teacher.bn_inputs.values()) == bn


@given(any_network)
def test_parse_is_the_inverse_of_label(network):
    assert parse(label(network)) == network


@given(any_network)
def test_a_network_is_equal_after_conversion_to_a_tree(network):
    adapter = TypeAdapter(Annotated[AnyNetwork, Field(discriminator="name")])
    assert adapter.validate_python(adapter.dump_python(network)) == network


def test_parse_fills_in_defaults():
    assert parse("resnet") == ResNet()
    assert parse("resnet-14") == ResNet(depth=14)
    assert parse("convnet-3-32") == ConvNet(depth=3, width=32)
    assert parse("lenet5_half") == LeNet5Half()
    assert parse("wrn-40-2") == Wrn(depth=40, width=2)
    assert parse("resnet18") == ResNet18(width=64)
    assert parse("torchvision:resnet50") == Torchvision(model="resnet50")


@pytest.mark.parametrize(
    "text",
    [
        *("", "./x.pt", "vgg-11", "resnet50", "resnet-", "resnet--8", "resnet-8-16-3", "lenet5-2", "resnet-²"),
        *(" resnet", "resnet:8", "torchvision-resnet50", "torchvision:", "torchvision:resnet50:x", ":resnet50"),
    ],
)
def test_parse_refuses_texts_that_are_no_network(text):
    expected = (
        f"network is {text!r}; accepted: lenet5, lenet5_half, resnet-DEPTH-WIDTH, convnet-DEPTH-WIDTH, alexnet, "
        "alexnet_half, resnet18-WIDTH, resnet34-WIDTH, wrn-DEPTH-WIDTH, vgg11-WIDTH, mobilenet_v2-WIDTH, "
        "squeezenet-WIDTH, torchvision:MODEL, deeplab_resnet-DEPTH-WIDTH, deeplab_mobilenet_v2-WIDTH, "
        "such as resnet-8-16"
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        parse(text)


NAMES = ["lenet5", "resnet", "convnet", "wrn", "vgg11", "torchvision:vgg11", "vgg"]


@settings(max_examples=50)
@given(st.sampled_from(NAMES), st.lists(st.integers(-1, 10**7), max_size=3))
def test_parse_returns_a_network_or_raises_an_input_error(name, numbers):
    text = "-".join([name, *map(str, numbers)])
    try:
        network = parse(text)
    except InputError:
        return
    assert label(network).startswith(text)
