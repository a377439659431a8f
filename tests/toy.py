"""A toy data set of four classes of blobs, a small teacher, and matching configs. Uses no files and no Ray.

Letters: N images, C channels, H W height and width, K classes.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.world import IMAGE_SHAPE as IMAGE_SHAPE
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD, TEACHER, blobs, make_teacher, samples
from condkd_ray.testing.world import wrap as wrap
from condkd_ray.trial.config import Prepared, TrialConfig, tensor_digest
from condkd_ray.trial.diagnosis import make_landmarks
from condkd_ray.trial.evaluation import views

IPC = 2


def by_layer(bn: torch.Tensor, teacher: Teacher) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Split `Observation.bn` or `Teacher.bn[0]` (2, S) into a (mean, variance) pair for each BN layer."""
    return list(zip(*(row.split(list(teacher.bn_inputs.values())) for row in bn), strict=True))


def answered(images: RealImages, teacher: Teacher) -> Samples:
    """Return real images as samples with the teacher's logits."""
    samples = images.samples(MEAN, STD)
    with torch.no_grad():
        return Samples(samples.images, samples.labels, teacher.logits(samples.images))


def make_prepared(condensed: bool = True) -> Prepared:
    """Return the inputs of trials of `toy_config`.

    128 test and 64 validation images, two condensed images per class unless `condensed` is false, a proxy set, and
    landmarks.
    """
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
    """Return a config with three rounds of about 0.1 s for `make_prepared()`; `changes` are fields of `TrialConfig`."""
    fields: dict[str, Any] = {
        "teacher": TeacherConfig(network=TEACHER),
        "student": ResNet(depth=8, width=2),
        "condensation": RandomReal(ipc=IPC),
        "inversion": Fast(steps=2, batch=16, latent=16, width=8),
        "distiller": Distiller(steps=2, batch=16, condensed_share=0.25),
        "rounds": 3,
    }
    return TrialConfig(**fields | changes)


def sure(*classes: int) -> Samples:
    """Return samples whose logits assign them to these classes; their labels are random."""
    seen = F.one_hot(torch.tensor(classes), NUM_CLASSES).float()
    return replace(samples(len(classes)), logits=seen)
