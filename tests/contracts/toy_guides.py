"""Guides over toy images, and what a host does with them."""

from typing import get_args

import pytest
import torch
from toy import NUM_CLASSES, blobs, make_teacher, samples

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import AnyGuidance, Discriminator, NoGuidance
from condkd_ray.methods.guidance.discriminator import Condition
from contracts.toy_methods import small

CONDITIONS = get_args(Condition)
GUIDES = [kind for kind in get_args(AnyGuidance) if kind is not NoGuidance]
FORMS = [small(kind) for kind in GUIDES if kind is not Discriminator]
FORMS += [small(Discriminator, condition=condition) for condition in CONDITIONS]
MIDDLE = "stages.1"
"""A layer of the toy teacher that has places."""
LABELS = torch.arange(16) % NUM_CLASSES

each_guidance = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.__name__)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {getattr(form, 'condition', '')}")
each_augmentation = pytest.mark.parametrize("augment", ["host", "condensed", "dsa"])
each_layer = pytest.mark.parametrize("layer", ["penultimate", MIDDLE])


def identity(images, stream):
    return images


def bound(guidance, *, rng=None, teacher=None, condensed=None, host_augment=identity, carried=None, progress=0.0):
    """A guide over two condensed images a class, and its state."""
    rng, teacher = rng or Streams(0), teacher or make_teacher()
    condensed = condensed or blobs(8, seed=4).samples(teacher.mean, teacher.std)
    carried = guidance.start(teacher, condensed, rng) if carried is None else carried
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
