"""Checks of the contract `condkd_ray.models.network.Network`."""

import torch
from torch import nn

from condkd_ray.core.method import InputError
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
    """Check that images of `shape` (C, H, W) give finite logits, computed by a last `nn.Linear`."""
    module = network.build(shape, CLASSES)
    logits = module(torch.randn(3, *shape))
    expect(logits.shape == (3, CLASSES), f"the logits of 3 images have shape (3, {CLASSES})")
    expect(bool(logits.isfinite().all()), "logits are finite")
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
    expect(observation.logits.shape == (2, CLASSES), "the teacher's logits have shape (2, number of classes)")
    expect(observation.features.shape == (2, teacher.num_features), "features are the inputs of the last linear layer")
    (gradient,) = torch.autograd.grad(observation.features.square().sum(), images)
    expect(
        bool(gradient.isfinite().all()) and bool((gradient != 0).any()),
        "features have finite, non-zero gradients with respect to the images",
    )


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
