from dataclasses import replace

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import to_model, to_unit, unseen
from condkd_ray.methods.condensation import RandomReal, SqueezeRecover
from condkd_ray.methods.condensation.condensation import convnet_for, train
from condkd_ray.methods.condensation.squeeze_recover import FIRST
from condkd_ray.methods.losses.inversion import bn_distance
from condkd_ray.models import ConvNet, ResNet
from condkd_ray.models.teacher import Teacher
from methods.condensation.condensers import MEAN, NUM_CLASSES, STD, condense, real_pixels, real_samples

SMALL = SqueezeRecover(ipc=2, network=ResNet(width=4), epochs=8, batch=16, iterations=50)


def as_teacher(network: nn.Module) -> Teacher:
    options = {"num_classes": NUM_CLASSES, "image_shape": (3, 8, 8), "mean": MEAN, "std": STD, "train_size": 100}
    return Teacher(network, flip_ok=True, **options)  # type: ignore[arg-type]


def trained(network: ResNet | ConvNet, seed: int = 9) -> nn.Module:
    with Streams(seed).forked("stranger"):
        module = network.build((3, 8, 8), NUM_CLASSES)
    rng = torch.Generator().manual_seed(seed)
    return train(
        module, real_samples(seed=seed), epochs=12, batch=16, lr=0.05, momentum=0.9, linear_decay=True, rng=rng
    )


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (network(images).argmax(1) == labels).float().mean().item()


def test_an_independent_network_recognises_the_images():
    """The network has another architecture and seed, and is trained on other data. It does not recognise noise."""
    ours, other_data = (toy.blobs(256, seed).samples(toy.MEAN, toy.STD) for seed in (0, 1))
    options = {"num_classes": toy.NUM_CLASSES, "mean": toy.MEAN, "std": toy.STD, "flip_ok": False, "rng": Streams(0)}
    made = replace(SMALL, ipc=5, epochs=4, bn_weight=0.02).condense(ours, **options)  # type: ignore[arg-type]
    with Streams(9).forked("stranger"):
        stranger = convnet_for(toy.IMAGE_SHAPE, width=16, depth=3).build(toy.IMAGE_SHAPE, toy.NUM_CLASSES)
    rng = torch.Generator().manual_seed(1)
    train(stranger, other_data, epochs=6, batch=16, lr=0.05, momentum=0.9, linear_decay=True, rng=rng)
    assert accuracy(stranger, made.images, made.labels) > 2 / toy.NUM_CLASSES
    assert accuracy(stranger, torch.randn(made.images.shape, generator=rng), made.labels) < 2 / toy.NUM_CLASSES


def test_the_inverted_network_recognises_the_images_and_its_statistics_are_matched():
    network = as_teacher(trained(ResNet(width=4)))
    # The classes are patterns of single pixels, which a shift by one pixel destroys.
    method = replace(SMALL, squeeze="teacher", ipc=3, shift=0.0)
    made = condense(method, teacher=network)
    assert accuracy(network.network, made.images, made.labels) > 0.9

    def distance(images: Tensor) -> float:
        return bn_distance(network.observe(images.view(NUM_CLASSES, 3, 3, 8, 8)[:, 0]).bn, *network.bn, FIRST).item()

    unmatched = condense(replace(method, bn_weight=0.0), teacher=network)
    assert distance(made.images) < 0.8 * distance(unmatched.images)


def test_the_first_layer_counts_ten_times():
    running = torch.tensor([[0.0] * 5, [1.0] * 5])
    seen = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 3.0]])
    layers = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    assert bn_distance(seen, running, layers, FIRST) == 10 * 5 + 2


def test_pixels_stay_in_the_valid_range_and_images_differ():
    made = condense(SMALL)
    unit = to_unit(made.images, MEAN, STD)
    assert unit.min() > -1e-5
    assert unit.max() < 1 + 1e-5
    by_class = made.images.view(NUM_CLASSES, 2, -1)
    assert (by_class[:, 0] - by_class[:, 1]).abs().mean() > 0.1


def test_with_squeeze_teacher_the_set_depends_on_the_teacher_and_not_on_real_images():
    method = replace(SMALL, squeeze="teacher", iterations=5)
    first, second = (as_teacher(trained(ResNet(width=4), seed)) for seed in (3, 4))
    before = {name: value.clone() for name, value in first.network.state_dict().items()}
    made = condense(method, teacher=first)
    options = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD, "flip_ok": True, "rng": Streams(0)}
    again = method.condense(real_samples(seed=5), teacher=first, **options)  # type: ignore[arg-type]
    assert torch.equal(made.images, again.images)
    assert not torch.equal(made.images, condense(method, teacher=second).images)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in first.network.parameters())


def test_the_label_states_that_the_teacher_is_inverted():
    own, of_teacher = SMALL, replace(SMALL, squeeze="teacher")
    assert (own.needs_teacher, own.label) == (False, "squeeze_recover")
    assert (of_teacher.needs_teacher, of_teacher.label) == (True, "squeeze_recover (of the teacher)")
    assert (RandomReal().needs_teacher, RandomReal().label) == (False, "random_real")


def test_a_teacher_without_batch_normalisation_is_refused():
    teacher = as_teacher(ConvNet(depth=2, width=4).build((3, 8, 8), NUM_CLASSES))
    SMALL.check_teacher(teacher)
    with pytest.raises(InputError, match="BN layers to invert is 0; accepted: 1 or more, as in resnet-8-16; or"):
        condense(replace(SMALL, squeeze="teacher"), teacher=teacher)


def test_crops_and_shifts_change_the_images():
    made = [condense(replace(SMALL, iterations=3, **c)).images for c in ({}, {"least_crop": 0.5}, {"shift": 0.25})]
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


class RecordedResNet(ResNet):
    """A network that records its inputs in training and those after it."""

    def build(self, image_shape, num_classes):
        module = super().build(image_shape, num_classes)
        module.register_forward_pre_hook(
            lambda network, inputs: (TRAINED if network.training else INVERTED).append(inputs[0].detach().clone())
        )
        return module


TRAINED: list[Tensor] = []
INVERTED: list[Tensor] = []


def network_inputs(
    mean: tuple[float, ...], std: tuple[float, ...], **fields: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the squeezed network's inputs in training and in inversion, for pixels normalised by `mean` and `std`."""
    TRAINED.clear()
    INVERTED.clear()
    pixels, labels = real_pixels()
    options = {"num_classes": NUM_CLASSES, "mean": mean, "std": std, "flip_ok": True, "rng": Streams(0)}
    method = SqueezeRecover(ipc=1, network=RecordedResNet(width=2), epochs=1, **{"iterations": 1, **fields})  # type: ignore[arg-type]
    method.condense(unseen(to_model(pixels / 255, mean, std), labels), **options)  # type: ignore[arg-type]
    # The first input after training is a blank image with which `Teacher` inspects the network.
    return list(TRAINED), [batch for batch in INVERTED if len(batch) == NUM_CLASSES]


@settings(max_examples=10)
@given(mean=st.floats(0.05, 0.95), std=st.floats(0.05, 0.5))
def test_the_network_is_trained_on_pixels_that_are_augmented_before_they_are_normalised(mean, std):
    plain, _ = network_inputs((0.0,) * 3, (1.0,) * 3)
    found, _ = network_inputs((mean,) * 3, (std,) * 3)
    assert all((batch == 0).any() for batch in plain)
    for before, after in zip(plain, found, strict=True):
        assert torch.equal(to_model(before, (mean,) * 3, (std,) * 3), after)


def test_images_are_inverted_under_rolls_of_one_offset_for_the_batch():
    """This also holds for 8x8 pixels, because the offset is at least one pixel."""
    _, [start] = network_inputs(MEAN, STD, shift=0.0)
    _, batches = network_inputs(MEAN, STD, iterations=12, lr=1e-12)
    start = min((start, start.flip(3)), key=lambda images: (images - batches[0]).abs().sum().item())
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    rolls = {(o, m): images.roll(o, (2, 3)) for m, images in enumerate((start, start.flip(3))) for o in offsets}
    found = [[key for key, images in rolls.items() if torch.allclose(images, batch)] for batch in batches]
    assert all(len(keys) == 1 for keys in found)
    assert len({key for [key] in found}) > 4


def test_divergence_raises_an_error_that_names_the_loss_term():
    with pytest.raises(NonFiniteError, match="condensation/training is not finite"):
        condense(replace(SMALL, train_lr=1e30))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ipc": 0}, "ipc is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"batch": 1}, "batch is 1; accepted: 2 or more, for batch normalisation"),
        ({"train_lr": 0.0}, "train_lr is 0.0"),
        ({"bn_weight": -1.0}, "bn_weight is -1.0"),
        ({"least_crop": 0.0}, "least_crop is 0.0"),
        ({"shift": 1.5}, "shift is 1.5"),
    ],
)
def test_impossible_fields_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        SqueezeRecover(**fields)
