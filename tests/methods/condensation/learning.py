"""The accuracy of a network that is trained only on a condensed set of the bundled digits."""

from functools import cache

import torch

from condkd_ray.core.rng import Streams
from condkd_ray.data import datasets
from condkd_ray.data.augment import dsa
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.condensation.condensation import convnet_for, train


@cache
def digits() -> datasets.Dataset:
    return datasets.load(DataConfig(name="digits"))


def accuracy_on_digits(method: AnyCondensation, *, seed: int = 0) -> float:
    """Return the test accuracy of a ConvNet that is trained only on the condensed set of `method`."""
    whole, rng = digits(), Streams(seed)
    real, test = (part.samples(whole.mean, whole.std) for part in (whole.train, whole.test))
    options = {"num_classes": whole.num_classes, "mean": whole.mean, "std": whole.std, "flip_ok": whole.flip_ok}
    made = method.condense(real, **options, rng=rng)  # type: ignore[arg-type]
    with Streams(1).forked("stranger"):
        network = convnet_for(whole.image_shape, width=32, depth=3).build(whole.image_shape, whole.num_classes)

    def augment(images: torch.Tensor) -> torch.Tensor:
        return dsa(images, rng=rng["stranger"], choice=rng.host("stranger"), flip=False)

    recipe = {"epochs": 60, "batch": 256, "lr": 0.05, "momentum": 0.9, "linear_decay": True}
    train(network, made, **recipe, augment=augment, rng=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    with torch.no_grad():
        return (network(test.images).argmax(1) == test.labels).float().mean().item()
