import copy
import pickle
from collections.abc import Iterator

import guard  # noqa: F401 - registers the output shapes of an operator on meta
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import IMAGE_SHAPE, MEAN, NUM_CLASSES, STD, TEACHER, by_layer, samples, wrap

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.models import Torchvision
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher

KNOWN = {"image_shape": IMAGE_SHAPE, "mean": MEAN, "std": STD, "train_size": 10, "flip_ok": False}


def network() -> nn.Module:
    """Return a network whose BN statistics are not the initial ones."""
    with Streams(0).forked("init/teacher"):
        module = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    module.train()(samples(32).images)
    return module


def hooks(module: nn.Module) -> Iterator[int]:
    for part in module.modules():
        yield len(part._forward_hooks) + len(part._forward_pre_hooks)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher.from_module(network(), num_classes=NUM_CLASSES, **KNOWN)


def test_from_module_leaves_the_callers_module_as_it_was():
    module = network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    teacher = Teacher.from_module(module, num_classes=NUM_CLASSES, **KNOWN)
    teacher.observe(samples(4).images)
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert sum(hooks(module)) == 0


def test_the_network_is_frozen_and_in_eval_mode(teacher):
    assert not teacher.network.training
    assert not any(weight.requires_grad for weight in teacher.network.parameters())
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    teacher.observe(samples(16).images)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda teacher: pickle.loads(pickle.dumps(teacher))])
def test_a_teacher_can_be_copied_and_pickled_after_observing(teacher, copied):
    images = samples(5).images
    with torch.autocast("cpu", torch.bfloat16):
        teacher.observe(images)
        half = teacher.batched_logits(images)
    seen = teacher.observe(images)
    other = copied(teacher)
    assert torch.equal(other.observe(images).bn, seen.bn)
    assert torch.equal(other.logits(images), seen.logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(other.batched_logits(images), half)
    # From now on, each observes its own network.
    with torch.no_grad():
        other.network.classifier.weight.zero_()
    assert not torch.equal(other.observe(images).logits, seen.logits)
    assert torch.equal(teacher.observe(images).logits, seen.logits)


def test_features_are_the_input_of_the_last_linear_layer(teacher):
    seen = teacher.observe(samples(5).images)
    assert seen.features.shape == (5, 4 * TEACHER.width)
    last = teacher.network.classifier
    assert torch.allclose(F.linear(seen.features, last.weight, last.bias), seen.logits, atol=1e-6)
    assert torch.equal(seen.logits, teacher.logits(samples(5).images))


def test_bn_statistics_are_those_of_the_layers_inputs(teacher):
    images = samples(6).images
    module = teacher.network
    first = module.conv(images)
    block = module.stages[0][0]
    second = block.conv1(F.relu(module.bn(first)))
    seen = teacher.observe(images).bn
    for found, inputs in zip(by_layer(seen, teacher)[:2], (first, second), strict=True):
        flat = inputs.transpose(0, 1).flatten(1)
        assert torch.allclose(found[0], flat.mean(1), atol=1e-6)
        assert torch.allclose(found[1], flat.var(1, correction=0), atol=1e-6)


def test_input_means_are_each_images_channel_means_of_the_inputs_of_the_named_layers(teacher):
    images, module = samples(6).images, teacher.network
    stem = F.relu(module.bn(module.conv(images)))
    wanted = [maps.mean((2, 3)) for maps in (module.stages[0](stem), stem, module.conv(images))]
    seen = teacher.observe(images, input_means=("stages.1", "stages.0", "bn"))
    torch.testing.assert_close(seen.input_means, torch.cat(wanted, 1))
    assert teacher.observe(images).input_means is None


def test_an_input_of_a_layer_that_does_not_exist_is_refused(teacher):
    with pytest.raises(InputError, match=r"teacher layer is 'stages.7'; accepted: penultimate, conv"):
        teacher.observe(samples(2).images, input_means=("stages.7",))


@pytest.mark.parametrize("bn", [True, False])
def test_observing_puts_no_hook_on_any_bn_layer(teacher, bn):
    images, layers = samples(6).images, [part for part in teacher.network.modules() if isinstance(part, nn.BatchNorm2d)]
    found = []
    watch = teacher.network.register_forward_pre_hook(
        lambda *_: found.append(sum(len(layer._forward_pre_hooks) for layer in layers))
    )
    seen = teacher.observe(images, ("stages.1",), bn=bn)
    watch.remove()
    assert found == [0]  # readers are in a copy of its modules
    assert seen.bn.shape == (2, sum(layer.num_features for layer in layers) if bn else 0)
    whole = teacher.observe(images, ("stages.1",))
    assert torch.equal(seen.logits, whole.logits)
    assert torch.equal(seen.features, whole.features)
    assert torch.equal(seen.taps["stages.1"], whole.taps["stages.1"])


def test_running_statistics_have_the_order_of_the_observed_ones(teacher):
    seen = teacher.observe(samples(6).images).bn
    layers = [part for part in teacher.network.modules() if isinstance(part, nn.BatchNorm2d)]
    running, place = teacher.bn
    assert seen.shape == running.shape == (2, place.shape[1])
    for (mean, var), layer, row in zip(by_layer(running, teacher), layers, place, strict=True):
        assert torch.equal(mean, layer.running_mean)
        assert torch.equal(var, layer.running_var)
        assert torch.equal(running[0][row.bool()], mean)
    assert torch.equal(place.sum(0), torch.ones(place.shape[1]))


def test_features_and_bn_statistics_are_those_of_layers_that_run():
    class Odd(nn.Module):
        """Registers its layers in another order than it runs them, and does not run two of them."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(5, NUM_CLASSES)
            self.bn2 = nn.BatchNorm1d(5)
            self.bn1 = nn.BatchNorm2d(1)
            self.inner = nn.Linear(64, 5)
            self.unused = nn.Linear(5, NUM_CLASSES)
            self.unused_bn = nn.BatchNorm1d(5)

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self.bn2(self.inner(self.bn1(images).flatten(1))))

    module = Odd()
    teacher = Teacher.from_module(module, num_classes=NUM_CLASSES, **KNOWN)
    seen = teacher.observe(samples(3).images)
    assert seen.features.shape == (3, 5)
    assert [mean.shape for mean, _ in by_layer(seen.bn, teacher)] == [(1,), (5,)]
    assert teacher.bn[1].shape == (2, 6)


@pytest.mark.parametrize("network", [TEACHER, Torchvision(model="resnet18")], ids=label)
def test_a_tap_is_the_output_of_its_layer_even_if_the_next_layer_works_in_place(network):
    with Streams(0).forked("init/teacher"):
        teacher = Teacher.from_module(network.build(IMAGE_SHAPE, NUM_CLASSES), num_classes=NUM_CLASSES, **KNOWN)
    first = {"resnet": "bn", "torchvision": "bn1"}[network.name]
    images, module = samples(3).images, dict(teacher.network.named_modules())
    conv = module[{"bn": "conv", "bn1": "conv1"}[first]]
    seen = teacher.observe(images, (first,)).taps[first]
    torch.testing.assert_close(seen, nn.BatchNorm2d.forward(module[first], conv(images)))
    assert seen.min() < 0


def test_answer_from_does_not_change_its_input(teacher):
    values = torch.randn(2, TEACHER.width, *IMAGE_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    before = values.clone()
    teacher.logits_from("bn", values)
    assert torch.equal(values, before)


def test_taps_are_outputs_of_the_named_layers(teacher):
    images = samples(3).images
    seen = teacher.observe(images, ("conv", "stages.1"))
    assert list(seen.taps) == ["conv", "stages.1"]
    assert torch.equal(seen.taps["conv"], teacher.network.conv(images))
    assert seen.taps["stages.1"].shape == (3, 8, 4, 4)


def test_pooled_is_the_features_or_a_taps_mean_over_space(teacher):
    seen = teacher.observe(samples(3).images, ("stages.1", "classifier"))
    assert seen.pooled("penultimate") is seen.features
    torch.testing.assert_close(seen.pooled("stages.1"), seen.taps["stages.1"].mean((2, 3)))
    assert torch.equal(seen.pooled("classifier"), seen.logits)


class Oddity(nn.Module):
    """Contains a list that never runs, a layer that never runs, and a module that returns two tensors."""

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Flatten(), self.Two()])
        self.idle = nn.Linear(3, 3)
        self.classifier = nn.Linear(64, NUM_CLASSES)

    def forward(self, images):
        flat, _ = self.parts[1](self.parts[0](images))
        return self.classifier(flat)


@pytest.mark.parametrize("layer", ["parts", "parts.1", "idle", ""])
def test_modules_that_return_no_tensor_are_not_accepted_as_layers(layer):
    odd = wrap(Oddity())
    odd.check_layers(("parts.0", "classifier", "penultimate"))
    with pytest.raises(InputError, match=f"teacher layer is '{layer}'; accepted: penultimate, parts.0, classifier$"):
        odd.check_layers((layer,))


def test_penultimate_stands_for_the_input_of_the_last_linear_layer(teacher):
    images, layers = samples(3).images, ("stages.1", "penultimate")
    found = teacher.observe(images, layers, input_means=("penultimate", "bn"))
    assert list(found.taps) == list(layers)
    assert torch.equal(found.taps["penultimate"], found.features)
    assert torch.equal(found.input_means[:, : teacher.num_features], found.features)
    assert torch.equal(found.features, teacher.observe(images).features)


def test_an_unknown_layer_lists_the_valid_ones(teacher):
    with pytest.raises(InputError, match=r"'layer4'; accepted: penultimate, conv, bn, stages, .*classifier"):
        teacher.observe(samples(2).images, ("conv", "layer4"))
    assert sum(hooks(teacher.network)) == 0


def test_no_hook_remains_even_if_the_forward_pass_fails(teacher):
    teacher.observe(samples(2).images, ("stages",))
    assert sum(hooks(teacher.network)) == 0
    with pytest.raises(RuntimeError):
        teacher.observe(torch.zeros(2, 7, 8, 8), ("stages",))
    assert sum(hooks(teacher.network)) == 0


def test_after_observing_the_network_runs_without_hooks_and_shares_its_tensors_with_the_observer(teacher):
    counted = []
    teacher.observe(samples(2).images, ("stages.0",), input_means=("stages.1",))
    teacher.network.conv.register_forward_hook(lambda module, *_: counted.append(sum(hooks(teacher.network))))
    before = teacher.logits(samples(2).images)
    assert counted == [1]  # the hook of this test
    with torch.no_grad():
        teacher.network.conv.weight.mul_(2)
        teacher.network.bn.running_mean.add_(1)
    seen = teacher.observe(samples(2).images, ("stages.0",), input_means=("stages.1",))
    assert torch.equal(seen.logits, teacher.logits(samples(2).images))
    assert not torch.equal(seen.logits, before)


def test_a_teacher_moved_to_another_device_is_observed_there(teacher):
    images = samples(2).images
    seen = teacher.observe(images)
    moved = teacher.to("meta").observe(images.to("meta"))
    assert moved.bn.shape == seen.bn.shape
    assert {tensor.device.type for tensor in (moved.logits, moved.features, moved.bn, *teacher.bn)} == {"meta"}


@pytest.mark.parametrize("what", ["logits", "features", "bn", "taps"])
def test_all_observed_values_have_a_gradient_to_the_images(teacher, what):
    images = samples(4).images.requires_grad_()
    seen = teacher.observe(images, ("stages.0",))
    value = {
        "logits": seen.logits,
        "features": seen.features,
        "bn": seen.bn,
        "taps": seen.taps["stages.0"],
    }[what]
    (gradient,) = torch.autograd.grad(value.square().sum(), [images])
    assert gradient.abs().sum() > 0
    assert not any(t.requires_grad for t in (seen.detach().logits, seen.detach().features, seen.detach().bn))


def test_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match=r"shape of the teacher's output for 2 images is \(2, 4\); accepted: \(2, 10"):
        Teacher.from_module(network(), num_classes=10, **KNOWN)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_module_of_another_float_type_that_does_not_convert_images_is_refused(dtype):
    with pytest.raises(InputError, match=r"the teacher cannot read images of shape .*Float.*; accepted: .* float32"):
        Teacher.from_module(network().to(dtype), num_classes=NUM_CLASSES, **KNOWN)


def test_images_of_a_shape_that_the_network_cannot_read_are_refused():
    wrong = KNOWN | {"image_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(InputError, match=r"cannot read images of shape \(3, 8, 8\)"):
        Teacher.from_module(network(), num_classes=NUM_CLASSES, **wrong)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_constants_need_a_value_a_channel(name):
    with pytest.raises(InputError, match=rf"length of {name} is 3; accepted: 1, one per channel"):
        Teacher.from_module(network(), num_classes=NUM_CLASSES, **(KNOWN | {name: (0.1, 0.2, 0.3)}))


def test_a_teacher_without_a_linear_layer_at_the_end_is_refused():
    module = nn.Sequential(nn.Conv2d(1, NUM_CLASSES, 8), nn.Flatten())
    with pytest.raises(InputError, match=r"last linear layer of the teacher is None; accepted: a torch.nn.Linear"):
        Teacher.from_module(module, num_classes=NUM_CLASSES, **KNOWN)


def test_normalise_uses_the_constants(teacher):
    assert torch.allclose(teacher.normalise(torch.full((1, 1, 2, 2), 0.75)), torch.full((1, 1, 2, 2), 2.0))


def test_logits_from_a_layers_output_equal_those_of_the_images(teacher):
    images = samples(5).images
    seen = teacher.observe(images, ("stages.1",))
    torch.testing.assert_close(teacher.logits_from("stages.1", seen.taps["stages.1"]), seen.logits)
    torch.testing.assert_close(teacher.logits_from("penultimate", seen.features), seen.logits)
    assert sum(hooks(teacher.network)) == 0
    torch.testing.assert_close(teacher.logits(images), seen.logits)


def test_decides_is_true_only_for_a_layer_that_determines_the_logits(teacher):
    assert teacher.decides("penultimate", 4 * TEACHER.width)
    assert not teacher.decides("penultimate", 5)
    assert not teacher.decides("stages.2.0.conv2", 4 * TEACHER.width)
    assert sum(hooks(teacher.network)) == 0


def test_layers_with_weights_are_listed_in_the_order_in_which_they_run(teacher):
    names = list(teacher.weighted)
    assert names[:3] == ["conv", "stages.0.0.conv1", "stages.0.0.conv2"]
    assert "classifier" not in names
    assert all(teacher.weighted[name].weight.ndim == 4 for name in names)
    assert teacher.num_features == 4 * TEACHER.width
