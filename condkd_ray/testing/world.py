"""A toy data set of four classes of blobs, and a small teacher that trains in a second. Uses no files and no Ray.

Letters: N images, C channels, H W height and width, K classes.
"""

from functools import cache

import torch
from torch import nn

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.supervised import Supervised
from condkd_ray.models import ResNet
from condkd_ray.models.teacher import Teacher

NUM_CLASSES = 4
IMAGE_SHAPE = (1, 8, 8)
MEAN, STD = (0.25,), (0.25,)
TEACHER = ResNet(depth=8, width=4)


def blobs(count: int, seed: int = 0) -> RealImages:
    """Return `count` uint8 images (N, 1, 8, 8) of a bright blob on noise, near the corner that belongs to the class.

    The labels are 0, 1, 2, 3, 0, 1, ...
    """
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % NUM_CLASSES
    centres = torch.tensor([[2.0, 2.0], [2.0, 5.0], [5.0, 2.0], [5.0, 5.0]])[labels]
    centres = centres + 0.7 * torch.randn(count, 2, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
    distance = (grid - centres.view(-1, 1, 1, 2)).square().sum(-1)
    noise = 0.3 * torch.rand(count, 8, 8, generator=rng)
    pixels = 0.7 * torch.exp(-distance / 3) + noise
    return RealImages(pixels.mul(255).to(torch.uint8).unsqueeze(1), labels)


def wrap(network: nn.Module) -> Teacher:
    """Return a network as a teacher of the toy data set."""
    return Teacher(
        network, num_classes=NUM_CLASSES, image_shape=IMAGE_SHAPE, mean=MEAN, std=STD, train_size=1024, flip_ok=False
    )


@cache
def _weights() -> dict[str, torch.Tensor]:
    """Return the weights of a trained teacher, which is trained once per process."""
    train = blobs(1024, seed=1)
    with Streams(0).forked("init/teacher"):
        network = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    Supervised(epochs=3, batch=64, shift=0.0).train(
        network, train.pixels, train.labels, mean=MEAN, std=STD, flip_ok=False, rng=Streams(0)
    )
    return network.state_dict()


def make_teacher() -> Teacher:
    """Return a trained teacher. Teachers from different calls share no tensors."""
    with Streams(0).forked("init/teacher"):
        network = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    network.load_state_dict(_weights())
    return wrap(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def make_student() -> nn.Module:
    """Return a student that predicts the teacher's classes with lower confidence.

    The difference gives adversarial loss terms a gradient.
    """
    student = make_teacher().network.requires_grad_(True)
    with torch.no_grad():
        [layer for layer in student.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(0.5)
    return student.eval()


def samples(count: int, seed: int = 0, labels: torch.Tensor | None = None) -> Samples:
    """Return random samples with random logits. Pixels are in [0, 1] before the teacher's normalisation."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, *IMAGE_SHAPE, generator=rng)
    if labels is None:
        labels = torch.randint(NUM_CLASSES, (count,), generator=rng)
    return Samples((pixels - MEAN[0]) / STD[0], labels, torch.randn(count, NUM_CLASSES, generator=rng))
