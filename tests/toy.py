"""A world that trains in a second: four classes of blobs, a small teacher of them, configs to match. No files, no Ray.

Letters: N images, C channels, H W height and width, K classes.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig, tensor_digest
from condkd_ray.trial.diagnosis import make_landmarks
from condkd_ray.trial.evaluation import views

NUM_CLASSES = 4
IMAGE_SHAPE = (1, 8, 8)
MEAN, STD = (0.25,), (0.25,)
TEACHER = ResNet(depth=8, width=4)
IPC = 2


def blobs(count: int, seed: int = 0) -> RealImages:
    """`count` uint8 images (N, 1, 8, 8), labels in turn: a bright blob near one corner, on noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % NUM_CLASSES
    centres = torch.tensor([[2.0, 2.0], [2.0, 5.0], [5.0, 2.0], [5.0, 5.0]])[labels]
    centres = centres + 0.7 * torch.randn(count, 2, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
    distance = (grid - centres.view(-1, 1, 1, 2)).square().sum(-1)
    noise = 0.3 * torch.rand(count, 8, 8, generator=rng)
    pixels = 0.7 * torch.exp(-distance / 3) + noise
    return RealImages(pixels.mul(255).to(torch.uint8).unsqueeze(1), labels)


def wrap(network: torch.nn.Module) -> Teacher:
    """A teacher of blobs from a network."""
    return Teacher(
        network, num_classes=NUM_CLASSES, image_shape=IMAGE_SHAPE, mean=MEAN, std=STD, train_size=1024, flip_ok=False
    )


def by_layer(bn: torch.Tensor, teacher: Teacher) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(Mean, variance) of each BN layer, of what stands side by side in `Observation.bn` (2, S) or in `Teacher.bn`."""
    return list(zip(*(row.split(list(teacher.bn_inputs.values())) for row in bn), strict=True))


@cache
def _weights() -> dict[str, torch.Tensor]:
    """Of a trained teacher; trained once a process."""
    train = blobs(1024, seed=1)
    with Streams(0).forked("init/teacher"):
        network = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    Supervised(epochs=3, batch=64, shift=0.0).train(
        network, train.pixels, train.labels, mean=MEAN, std=STD, flip_ok=False, rng=Streams(0)
    )
    return network.state_dict()


def make_teacher() -> Teacher:
    """A trained teacher; each call gives one that shares nothing with the others."""
    with Streams(0).forked("init/teacher"):
        network = TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)
    network.load_state_dict(_weights())
    return wrap(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def answered(images: RealImages, teacher: Teacher) -> Samples:
    """Real images as samples with the teacher's logits."""
    samples = images.samples(MEAN, STD)
    with torch.no_grad():
        return Samples(samples.images, samples.labels, teacher.logits(samples.images))


def make_prepared(condensed: bool = True) -> Prepared:
    """What trials of `toy_config` need: 128 test and 64 validation images, two condensed ones a class, a proxy set,
    landmarks."""
    teacher = make_teacher()
    few = answered(blobs(IPC * NUM_CLASSES, seed=4), teacher) if condensed else None
    proxy = views(blobs(NUM_CLASSES, seed=5).samples(MEAN, STD), teacher, seed=0)
    hashes = {
        "data": "toy",
        "teacher": tensor_digest(teacher.network.state_dict()),
        "condensed": tensor_digest({"images": few.images}) if few else "",
        "proxy": tensor_digest({"images": proxy.images}),
    }
    landmarks = make_landmarks(teacher, blobs(10 * NUM_CLASSES, seed=6).samples(MEAN, STD), few)
    return Prepared(teacher, blobs(128, seed=2), blobs(64, seed=3), few, proxy, hashes, landmarks)


def toy_config(**changes: Any) -> TrialConfig:
    """Three rounds of a tenth of a second; `changes` are fields of `TrialConfig`. Fits `make_prepared()`."""
    fields: dict[str, Any] = {
        "teacher": TeacherConfig(network=TEACHER),
        "student": ResNet(depth=8, width=2),
        "condensation": RandomReal(ipc=IPC),
        "inversion": Fast(steps=2, batch=16, latent=16, width=8),
        "distiller": Distiller(steps=2, batch=16, condensed_share=0.25),
        "rounds": 3,
    }
    return TrialConfig(**fields | changes)


def samples(count: int, seed: int = 0, labels: torch.Tensor | None = None) -> Samples:
    """Random samples in the teacher's space, every pixel within [0, 1] before normalisation; logits are random."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, *IMAGE_SHAPE, generator=rng)
    if labels is None:
        labels = torch.randint(NUM_CLASSES, (count,), generator=rng)
    return Samples((pixels - MEAN[0]) / STD[0], labels, torch.randn(count, NUM_CLASSES, generator=rng))


def sure(*classes: int) -> Samples:
    """Samples that the teacher puts into these classes, however they are labelled."""
    seen = F.one_hot(torch.tensor(classes), NUM_CLASSES).float()
    return replace(samples(len(classes)), logits=seen)
