"""Guides over toy images, and what a host does with them."""

from typing import get_args

import pytest
import torch
from toy import NUM_CLASSES, blobs, make_teacher, samples

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import AnyGuidance, Discriminator, Gaussian, Mmd, Moments, NoGuidance
from condkd_ray.methods.guidance.discriminator import Condition
from contracts.toy_methods import small

CONDITIONS = get_args(Condition)
GUIDES = [kind for kind in get_args(AnyGuidance) if kind is not NoGuidance]
FORMS = [small(kind) for kind in GUIDES if kind is not Discriminator]
FORMS += [small(Discriminator, condition=condition) for condition in CONDITIONS]
LOOSE = {"mixup": 1.0, "noise": 0.5}
OPTIONS = {
    "mmd stages": small(Mmd, stages=2, stages_weight=0.5, **LOOSE),
    "moments stages": small(Moments, stages=2, stage_covariances=True, **LOOSE),
    "discriminator stages": small(Discriminator, stages=1, stages_weight=2.0, **LOOSE),
    "gaussian stages": small(Gaussian, stages=2, stage_covariances=True, shrinkage="oas"),
    "gaussian means": small(Gaussian, covariance="none"),
    "mmd marginal": small(Mmd, alignment="marginal", mixup=0.5),
    "moments marginal": small(Moments, alignment="marginal", noise=0.1),
    "discriminator marginal": small(Discriminator, alignment="marginal", condition="none"),
    "gaussian marginal": small(Gaussian, alignment="marginal", stages=1),
}
"""Forms with what they leave out by default."""
MIDDLE = "stages.1"
"""A layer of the toy teacher that has places."""
LABELS = torch.arange(16) % NUM_CLASSES

each_guidance = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.__name__)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {getattr(form, 'condition', '')}")
each_option = pytest.mark.parametrize("form", OPTIONS.values(), ids=OPTIONS)
AUGMENTATIONS = ["host", "condensed", "dsa"]
each_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS)
each_layer = pytest.mark.parametrize("layer", ["penultimate", MIDDLE])


def identity(images, stream):
    return images


def bound(guidance, *, rng=None, teacher=None, condensed=None, host_augment=identity, carried=None, progress=0.0):
    """A guide over two condensed images a class, and its state."""
    rng, teacher = rng or Streams(0), teacher or make_teacher()
    condensed = condensed or blobs(8, seed=4).samples(teacher.mean, teacher.std)
    carried = guidance.start(teacher, condensed, rng, host_augment) if carried is None else carried
    guide = guidance.bind(
        carried, teacher=teacher, condensed=condensed, host_augment=host_augment, rng=rng, progress=progress
    )
    return guide, carried


def fakes(seed=0):
    return samples(len(LABELS), seed, LABELS).images


def step(guide, images, teacher):
    """What a host does with a guide, once; the penalty and its gradient at the images."""
    images = images.clone().requires_grad_()
    seen = teacher.observe(images, guide.layers)
    penalty = guide.penalty(images, seen, LABELS)
    (gradient,) = torch.autograd.grad(penalty + 0 * images.sum(), images)
    guide.update(images.detach(), seen.detach(), LABELS)
    return penalty.detach(), gradient
