import re

import pytest
import torch
from torch import nn
from torchvision import models

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models import Torchvision, parse
from condkd_ray.models.torchvision import SEGMENTATION, SMALLEST

# One of each family; the other members differ in numbers of layers and channels.
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "vgg11", "vgg11_bn"),
    "wide_resnet50_2",
]


def test_all_names_are_torchvisions_and_only_known_families_are_left_out():
    left_out = {name for name in models.list_models(module=models) if name not in SMALLEST}
    assert set(SMALLEST) <= set(models.list_models(module=models))
    assert all(re.match("googlenet|inception|squeezenet|vit|swin|maxvit", name) for name in left_out)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_smallest_side_is_correct(model, channels):
    network = Torchvision(model=model)
    side = network.min_size
    with torch.device("meta"):
        module = network.build((channels, side, side + 1), 5).train()
        assert module(torch.zeros(2, channels, side, side + 1)).shape == (2, 5)
        assert isinstance(list(module.modules())[-1], nn.Linear)
        if side > 1:
            with pytest.raises((RuntimeError, ValueError)):
                module(torch.zeros(2, channels, side - 1, side))
    expected = f"network torchvision:{model} on images of {side - 1}x{side}: smallest side is {side - 1}; accepted: "
    with pytest.raises(InputError, match=f"^{re.escape(expected)}{side} or more$"):
        network.build((channels, side - 1, side), 5)


@pytest.mark.parametrize("model", ["regnet_x_400mf", "regnet_y_400mf"])
def test_models_that_need_real_tensors_to_be_built_are_built(model):
    module = Torchvision(model=model).build((1, 8, 8), 5).to("meta")
    assert module(torch.zeros(2, 1, 1, 2, device="meta")).shape == (2, 5)
    assert isinstance(list(module.modules())[-1], nn.Linear)


def test_weights_saved_from_torchvision_load_and_give_its_logits():
    original = models.shufflenet_v2_x0_5(weights=None, num_classes=5).eval()
    module = parse("torchvision:shufflenet_v2_x0_5").build((3, 32, 32), 5).eval()
    module.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(module(images), original(images))


def test_a_grey_image_is_read_as_three_equal_channels():
    def build(channels: int) -> nn.Module:
        with Streams(0).forked("init/teacher"):
            return Torchvision(model="resnet18").build((channels, 32, 32), 5).eval()

    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(build(1)(images), build(3)(images.expand(2, 3, 32, 32)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["efficientnet_b0", "mobilenet_v3_small"])
def test_dropout_and_stochastic_depth_are_off(model):
    module = Torchvision(model=model).build((3, 32, 32), 5).train()
    images = torch.randn(2, 3, 32, 32)
    before = torch.get_rng_state()
    module(images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", ["mnasnet0_5", "mobilenet_v3_small"])
def test_running_statistics_have_the_default_momentum(model):
    with torch.device("meta"):
        modules = list(Torchvision(model=model).build((3, 32, 32), 5).modules())
    assert {layer.momentum for layer in modules if isinstance(layer, nn.BatchNorm2d)} == {0.1}


def test_two_channels_are_refused_with_what_is_accepted():
    with pytest.raises(InputError, match=r"^channels of images for torchvision's resnet18 is 2; accepted: 1 \(grey\)"):
        Torchvision().build((2, 32, 32), 5)


@pytest.mark.parametrize("model", SEGMENTATION)
def test_segmentation_networks_keep_torchvisions_names_and_read_the_smallest_side(model):
    network = Torchvision(model=model)
    assert network.tasks == ("segmentation",)
    with torch.device("meta"):
        module = network.build((3, 1, 2), 5).train()
        assert module(torch.zeros(2, 3, 1, 2)).shape == (2, 5, 1, 2)
        original = models.get_model(model, weights=None, weights_backbone=None, num_classes=5)
    assert list(module.state_dict()) == list(original.state_dict())
    assert {layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)} <= {0.0}


def test_segmentation_weights_saved_from_torchvision_load_and_give_its_logits():
    original = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    module = parse("torchvision:lraspp_mobilenet_v3_large").build((3, 24, 32), 5).eval()
    module.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 24, 32)
    assert torch.equal(module(images), original(images)["out"])


def test_the_tasks_of_the_class_are_both_and_of_a_network_one():
    assert Torchvision.tasks == ("classification", "segmentation")
    assert Torchvision(model="resnet18").tasks == ("classification",)


@pytest.mark.parametrize("model", ["inception_v3", "vit_b_16", "squeezenet1_0", "resnet", ""])
def test_other_names_are_refused_with_the_list(model):
    accepted = f"{', '.join(sorted(SMALLEST))}; for segmentation {', '.join(sorted(SEGMENTATION))}"
    expected = f"torchvision model is {model!r}; accepted: {accepted}"
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        Torchvision(model=model)
