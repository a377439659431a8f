"""An untrained teacher, random images and a trial that uses them: costs of steps do not depend on the weights."""

from dataclasses import replace

import torch
from torch import Tensor

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import MASK, UNLABELLED, Samples, unseen
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.targets import balanced_layouts
from condkd_ray.models import AnyNetwork
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState, own_images, start
from condkd_ray.trial.run import local_store
from condkd_ray.trial.synthesis import arithmetic

SEEN = 4
"""Number of noise batches that give the teacher's running statistics a realistic size."""


def teacher(network: AnyNetwork, shape: tuple[int, int, int], classes: int, device: torch.device) -> Teacher:
    """Return an untrained teacher whose BN layers have run on noise. `shape` (C, H, W)."""
    rng = Streams(0, device)
    with rng.forked("init/teacher"):
        module = network.build(shape, classes)
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for _ in range(SEEN):
            module.train()(noise(64, shape, device, rng))
    half = (0.5,) * shape[0]
    sizes = {"num_classes": classes, "image_shape": shape}
    return Teacher(module, **sizes, mean=half, std=half, train_size=50_000, flip_ok=True)


def noise(count: int, shape: tuple[int, int, int], device: torch.device, rng: Streams) -> Tensor:
    """Return (`count`, C, H, W) standard normal values."""
    images = torch.randn(count, *shape, device=device, generator=rng["latents"])
    return images.contiguous(memory_format=torch.channels_last)


def prepared(found: Teacher, per_class: int = 0) -> Prepared:
    """Return a trial's inputs with this teacher and `per_class` random condensed images per class; no test images."""
    rng = Streams(1, found.device)
    empty = noise(0, found.image_shape, found.device, rng)
    proxy = unseen(empty, torch.zeros(0, dtype=torch.int64, device=found.device))
    labels = torch.arange(found.num_classes, device=found.device).repeat_interleave(per_class)
    images = noise(len(labels), found.image_shape, found.device, rng)
    condensed = Samples(images, labels, found.batched_logits(images)) if per_class else None
    return Prepared(found, test=None, val=None, condensed=condensed, proxy=proxy)


def masked_images(found: Teacher, count: int, seed: int) -> RealImages:
    """Return `count` random images on the CPU with random masks, of the teacher's size; the first row is void."""
    rng, shape = Streams(seed), found.image_shape
    pixels = torch.randint(256, (count, *shape), generator=rng["pixels"], dtype=torch.uint8)
    labels = balanced_layouts(count, found, rng).to(MASK)
    labels[:, 0] = UNLABELLED
    return RealImages(pixels, labels)


def dense_prepared(found: Teacher, guides: RealImages, test: RealImages, names: tuple[str, ...] = ()) -> Prepared:
    """Return the inputs of a segmentation trial; the first guide is the proxy set.

    `names`: of the classes; by default their numbers.
    """
    few = guides.samples(found.mean, found.std).to(found.device)
    names = names or tuple(map(str, range(found.num_classes)))
    return Prepared(found, test=test, val=None, condensed=few, proxy=few[:1], class_names=names)


class Running:
    """A trial in progress whose memory has the images of its first rounds."""

    def __init__(self, config: TrialConfig, what: Prepared, rounds: int = 1) -> None:
        self.config, self.prepared = config, what
        self.state: TrialState = start(config, what)
        self.store = local_store(config, what, None)
        for _ in range(rounds):
            self.add(self.images())

    def images(self) -> Samples:
        """Return the images of the next round."""
        return own_images(self.config, self.prepared, self.state, self.store)[0]

    def add(self, images: Samples) -> None:
        """Add a round's images to the memory."""
        with arithmetic(self.config, self.prepared.teacher.device):
            memory, rng = self.state.memory, self.state.streams
            self.config.memory.add(memory, self.store, images, teacher=self.prepared.teacher, rng=rng)


def without_warm_up(config: TrialConfig) -> TrialConfig:
    """Return the config without warm-up: adversarial term and distillation are active from the first round on."""
    changes = {"warm_up": 0} if config.inversion.warm_up else {}
    return replace(config, inversion=replace(config.inversion, **changes))
