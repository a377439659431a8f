"""A toy segmentation task: scenes of rectangles, a small teacher, and matching configs. Uses no files and no Ray."""

from typing import Any

import torch

from condkd_ray.core.samples import Samples
from condkd_ray.data.datasets import DataConfig
from condkd_ray.methods.condensation import RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.models.deeplab import DeepLabResNet
from condkd_ray.testing.scenes import make_dense_teacher, scenes
from condkd_ray.testing.world import MEAN, NUM_CLASSES, STD
from condkd_ray.trial.config import Prepared, TrialConfig, tensor_digest
from condkd_ray.trial.evaluation import views

GUIDES = 4
STUDENT = DeepLabResNet(depth=8, width=2)
CLASS_NAMES = ("ground", "low", "middle", "high")


def make_dense_prepared(condensed: bool = True) -> Prepared:
    """Return the inputs of trials of `dense_config`.

    24 test and 16 validation images, four labelled images unless `condensed` is false, and a proxy set.
    """
    teacher = make_dense_teacher()
    few = scenes(GUIDES, seed=4).samples(MEAN, STD) if condensed else None
    proxy = views(scenes(4, seed=5).samples(MEAN, STD), teacher, seed=0)
    hashes = {
        "data": "toy scenes",
        "teacher": tensor_digest(teacher.network.state_dict()),
        "condensed": tensor_digest({"images": few.images}) if few else "",
        "proxy": tensor_digest({"images": proxy.images}),
    }
    parts = {"test": scenes(24, seed=2), "val": scenes(16, seed=3), "condensed": few, "proxy": proxy}
    return Prepared(teacher, **parts, hashes=hashes, class_names=CLASS_NAMES)


def dense_config(**changes: Any) -> TrialConfig:
    """Return a config with three rounds of about 0.1 s for `make_dense_prepared()`; `changes` are its fields."""
    fields: dict[str, Any] = {
        "data": DataConfig(name="scenes"),
        "teacher": TeacherConfig(network=STUDENT),
        "student": STUDENT,
        "condensation": RandomReal(ipc=GUIDES),
        "inversion": Fast(steps=2, batch=8, latent=16, width=8),
        "distiller": Distiller(steps=2, batch=8, condensed_share=0.25),
        "rounds": 3,
    }
    return TrialConfig(**fields | changes)


def masks(samples: Samples) -> list[int]:
    """Return the number of pixels of each class."""
    return [int((samples.labels == k).sum()) for k in range(NUM_CLASSES)]


def same_images(left: Samples, right: Samples) -> bool:
    """Return whether images and labels are equal, bit for bit."""
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)
