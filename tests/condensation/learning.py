"""What a network learns of the bundled digits from a condensed set alone."""

from functools import cache

import torch

from condkd_ray import data
from condkd_ray.augment import dsa
from condkd_ray.condensation import AnyCondensation
from condkd_ray.condensation.training import convnet_for, train
from condkd_ray.data import DataConfig
from condkd_ray.streams import Streams


@cache
def digits() -> data.Dataset:
    return data.load(DataConfig(name="digits"))


def accuracy_on_digits(method: AnyCondensation, *, seed: int = 0) -> float:
    """Fraction of the test images that a ConvNet names right which saw only what `method` makes of the train images."""
    whole, rng = digits(), Streams(seed)
    real, test = (part.samples(whole.mean, whole.std) for part in (whole.train, whole.test))
    options = {"num_classes": whole.num_classes, "mean": whole.mean, "std": whole.std, "flip_ok": whole.flip_ok}
    made = method.condense(real, **options, rng=rng)  # type: ignore[arg-type]
    with Streams(1).forked("stranger"):
        network = convnet_for(whole.image_shape, width=32, depth=3).build(whole.image_shape, whole.num_classes)

    def augment(images: torch.Tensor) -> torch.Tensor:
        return dsa(images, rng=rng["stranger"], choice=rng.host("stranger"), flip=False)

    recipe = {"epochs": 60, "batch": 256, "lr": 0.05, "momentum": 0.9, "falls": True}
    train(network, made, **recipe, augment=augment, rng=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    with torch.no_grad():
        return (network(test.images).argmax(1) == test.labels).float().mean().item()
