from pathlib import Path

import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models import parse
from condkd_ray.models.naming import SCHEMES, network_of, recognise
from condkd_ray.models.network import label
from condkd_ray.models.weights import fitted, load_into, recognised
from models import published

SHORT = (1, 1, 1)
CIFAR = {
    # Our label, and the network as its project publishes it, narrower where possible.
    "resnet:a-20-16": lambda: published.ResNet((3, 3, 3), (16, 16, 32, 64), "shortcut", "linear", pads=True),
    "resnet-8-16": lambda: published.ResNet(SHORT, (16, 16, 32, 64), "downsample", "fc"),
    "resnet-14-4": lambda: published.ResNet((2, 2, 2), (4, 4, 8, 16), "shortcut", "linear"),
    "resnet18-4": lambda: published.ResNet((2, 2, 2, 2), (4, 4, 8, 16, 32), "shortcut", "linear"),
    "resnet34-4": lambda: published.ResNet((3, 4, 6, 3), (4, 4, 8, 16, 32), "shortcut", "linear"),
    "resnet18-6": lambda: published.ResNet((2, 2, 2, 2), (6, 6, 12, 24, 48), "downsample", "fc"),
    "resnet34-6": lambda: published.ResNet((3, 4, 6, 3), (6, 6, 12, 24, 48), "downsample", "fc"),
    "wrn-16-1": lambda: published.WideResNet(16, 1),
    "wrn-10-2": lambda: published.WideResNet(10, 2),
    "vgg11-8": lambda: published.Vgg(8),
    "lenet5": lambda: published.LeNet(6, 16, 120, 84),
    "lenet5_half": lambda: published.LeNet(3, 8, 60, 42),
}


@pytest.mark.parametrize("spelled", CIFAR)
def test_a_published_network_is_recognised_and_gives_the_same_logits(tmp_path: Path, spelled: str):
    theirs, path, images = published.trained(CIFAR[spelled]()), tmp_path / "w.pth", torch.randn(4, 3, 32, 32)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}}, path)
    known = recognised(path)
    assert known is not None
    assert label(known.network) == spelled
    ours = parse(spelled).build((3, 32, 32), 10)
    found = fitted(ours, path)
    load_into(ours, found.weights, "weights")
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)
    [note] = found.notes
    assert note.startswith(f"weights in {path} are read as {spelled}, with names used by ")
    assert ("max pooling" in note) == (spelled in ("resnet18-6", "resnet34-6"))


def without(network: nn.Module, *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name not in names}


def test_a_state_dict_is_recognised_only_if_each_name_is_used_once():
    theirs = CIFAR["resnet-8-16"]()
    assert recognise(without(theirs)) is not None
    assert recognise(without(theirs, "layer2.0.bn1.weight")) is None
    assert recognise(without(theirs) | {"layer4.0.bn1.weight": torch.ones(16)}) is None
    assert recognise(without(theirs) | {"criterion.weight": torch.ones(16)}) is None


def test_mixed_naming_schemes_are_not_recognised():
    theirs = CIFAR["resnet-8-16"]().state_dict()
    mixed = {name.replace("fc.", "linear."): tensor for name, tensor in theirs.items()}
    assert recognise(mixed) is None
    assert all(scheme.renamed(mixed) is None for scheme in SCHEMES)


def test_a_shortcut_without_weights_is_recognised_only_from_the_project_whose_function_is_known():
    padded = published.ResNet(SHORT, (16, 16, 32, 64), "downsample", "fc", pads=True)
    assert recognise(padded.state_dict()) is None


@pytest.mark.parametrize(
    "theirs",
    [
        lambda: published.ResNet(SHORT, (8, 16, 32, 64), "downsample", "fc"),
        lambda: published.ResNet((2, 1, 1), (4, 4, 8, 16), "shortcut", "linear"),
        lambda: published.ResNet((2, 2, 2, 3), (4, 4, 8, 16, 32), "shortcut", "linear"),
    ],
    ids=["wider_second_stage", "unequal_stages", "other_depth"],
)
def test_networks_without_a_counterpart_are_not_recognised(theirs):
    assert recognise(theirs().state_dict()) is None


def test_the_network_is_found_from_the_packages_own_names():
    for spelled in ("resnet-14-8", "resnet:a-8-4", "resnet18-2", "resnet34-2", "wrn-16-2", "vgg11-4", "lenet5"):
        for shape in ((1, 32, 32), (3, 28, 28), (3, 64, 64)) if spelled == "vgg11-4" else ((1, 32, 32),):
            network = network_of(parse(spelled).build(shape, 7).state_dict())
            assert network is not None
            assert label(network) == spelled
    assert network_of({}) is None
    assert network_of({"conv.weight": torch.ones(()), "classifier.weight": torch.ones(3)}) is None


def test_weights_with_torchvisions_stem_are_recognised_as_torchvisions_network():
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    known = recognise(theirs)
    assert known is not None
    assert label(known.network) == "torchvision:resnet18"
    assert known.scheme is None


@pytest.mark.parametrize(
    ("spelled", "requested", "expected"),
    [
        ("resnet:a-20-16", "resnet-20-16", "they are weights of resnet:a-20-16, with names used by pytorch_resnet_ci"),
        ("resnet-8-16", "resnet-14-16", "they are weights of resnet-8-16, with names used by pytorch-cifar-models"),
        ("wrn-16-1", "wrn-16-2", "they are weights of wrn-16-1, with names used by ZeroShot"),
        ("vgg11-8", "resnet-8-16", "they are weights of vgg11-8, with names used by RepDistiller"),
    ],
)
def test_weights_of_another_network_are_refused_with_its_spelling(
    tmp_path: Path, spelled: str, requested: str, expected: str
):
    torch.save(CIFAR[spelled]().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w.pth do not fit the network: .*missing: ") as caught:
        fitted(parse(requested).build((3, 32, 32), 10), tmp_path / "w.pth")
    assert expected in str(caught.value)


def test_unknown_names_are_refused_with_the_known_schemes(tmp_path: Path):
    torch.save({"encoder.weight": torch.ones(3), "encoder.bias": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        fitted(parse("resnet-8-4").build((3, 32, 32), 10), tmp_path / "w.pth")
    message = str(caught.value)
    assert "missing: conv.weight, " in message
    assert "unexpected: encoder.weight, encoder.bias; accepted: the network's own names, or names used by " in message
    assert "kuangliu" not in message
    assert "pytorch-cifar" in message


@pytest.mark.parametrize("side", [32, 63, 64])
def test_a_published_vgg_gives_the_same_logits_at_sides_at_which_both_pool_alike(tmp_path: Path, side: int):
    theirs, path, images = published.trained(published.Vgg(8)), tmp_path / "w.pth", torch.randn(2, 3, side, side)
    torch.save(theirs.state_dict(), path)
    ours = parse("vgg11-8").build((3, side, side), 10)
    found = fitted(ours, path, (side, side))
    load_into(ours, found.weights, "weights")
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert len(found.notes) == 1


@pytest.mark.parametrize("side", [65, 96])
def test_a_vgg_with_another_pooling_is_refused(tmp_path: Path, side: int):
    torch.save(CIFAR["vgg11-8"]().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"RepDistiller.* is '{side} x {side}'; accepted: .*below 64 pixels, or"):
        fitted(parse("vgg11-8").build((3, side, side), 10), tmp_path / "w.pth", (side, side))
    # The names of this package stand for this package's network, at every size.
    own = parse("vgg11-8").build((3, side, side), 10)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    assert fitted(own, tmp_path / "own.pth", (side, side)).notes == ()


def test_a_vgg_for_images_of_64_pixels_and_other_classes_is_refused_by_its_shapes_alone(tmp_path: Path):
    torch.save(CIFAR["vgg11-8"]().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"network: of another shape: .*they are weights of vgg11-8") as caught:
        fitted(parse("vgg11-8").build((3, 64, 64), 7), tmp_path / "w.pth")
    assert "missing" not in str(caught.value)


def test_torchvisions_resnet_with_a_small_stem_gives_the_same_logits(tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    torch.save(published.trained(theirs).state_dict(), tmp_path / "w.pth")
    ours, images = parse("resnet18-64").build((3, 32, 32), 10), torch.randn(2, 3, 32, 32)
    load_into(ours, fitted(ours, tmp_path / "w.pth").weights, "weights")
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)
