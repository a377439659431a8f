"""Checks of the contract `condkd_ray.models.network.Network`."""

import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.core.task import is_dense
from condkd_ray.models import parse
from condkd_ray.models.network import Network, label
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.states import expect

CLASSES = 7


def check_network(network: Network) -> None:
    """Run all checks of this module, at the minimum image size and at 3 x 32 x 32 or more.

    Raises `AssertionError` with the rule that is broken.
    """
    side = network.min_size
    for shape in ((1, side, side + 1), (3, max(side, 32), max(side, 32))):
        check_logits(network, shape)
        check_teacher(network, shape)
    check_small_images_are_rejected(network)
    check_spelling(network)


def check_logits(network: Network, shape: tuple[int, int, int]) -> None:
    """Check that images of `shape` (C, H, W) give finite logits, in classification computed by a last `nn.Linear`."""
    module = network.build(shape, CLASSES)
    logits = module(torch.randn(3, *shape))
    expected = (3, CLASSES, *_positions(network, shape))
    expect(logits.shape == expected, f"the logits of 3 images have shape {expected}")
    expect(bool(logits.isfinite().all()), "logits are finite")
    if _positions(network, shape):
        return
    last = list(module.modules())[-1]
    expect(
        isinstance(last, nn.Linear) and last.out_features == CLASSES,
        f"the last module is nn.Linear with {CLASSES} outputs",
    )


def check_teacher(network: Network, shape: tuple[int, int, int]) -> None:
    """Check that the network can be a teacher: it has logits, features, and gradients with respect to the images."""
    channels = (0.5,) * shape[0]
    module = network.build(shape, CLASSES).eval()
    teacher = Teacher.from_module(module, num_classes=CLASSES, image_shape=shape, mean=channels, std=channels)
    images = torch.randn(2, *shape, requires_grad=True)
    observation = teacher.observe(images)
    expected = (2, CLASSES, *_positions(network, shape))
    expect(observation.logits.shape == expected, f"the teacher's logits have shape {expected}")
    expect(teacher.task in network.tasks, "the teacher's task is one of the network's")
    expect(
        observation.features.shape[:2] == (2, teacher.num_features), "features are the inputs of the layer for logits"
    )
    (gradient,) = torch.autograd.grad(observation.features.square().sum(), images)
    expect(
        bool(gradient.isfinite().all()) and bool((gradient != 0).any()),
        "features have finite, non-zero gradients with respect to the images",
    )


def _positions(network: Network, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the dimensions of logits after the classes: () for classification, (H, W) for segmentation."""
    return shape[1:] if any(map(is_dense, network.tasks)) else ()


def check_small_images_are_rejected(network: Network) -> None:
    """Check that a side below `min_size` raises `InputError`."""
    side = network.min_size - 1
    try:
        network.build((1, side, side), 2)
    except InputError:
        return
    raise AssertionError(f"images of {side} x {side} pixels raise InputError")


def check_spelling(network: Network) -> None:
    """Check that `parse` reads the network's command-line spelling."""
    expect(parse(label(network)) == network, f"parse({label(network)!r}) returns the network")
