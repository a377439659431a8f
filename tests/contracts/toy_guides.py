"""Guidance forms with toy settings, and helpers that call guides as a host does."""

from typing import get_args

import pytest

from condkd_ray.methods.guidance import AnyGuidance, Discriminator, Gaussian, Mmd, Moments, NoGuidance
from condkd_ray.methods.guidance.discriminator import Condition
from condkd_ray.testing.guidances import LABELS as LABELS
from condkd_ray.testing.guidances import bound as bound
from condkd_ray.testing.guidances import fakes as fakes
from condkd_ray.testing.guidances import identity as identity
from condkd_ray.testing.guidances import step as step
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
"""Forms with options that are off by default."""
MIDDLE = "stages.1"
"""A layer of the toy teacher with spatial positions."""
each_guidance = pytest.mark.parametrize("kind", GUIDES, ids=lambda kind: kind.__name__)
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {getattr(form, 'condition', '')}")
each_option = pytest.mark.parametrize("form", OPTIONS.values(), ids=OPTIONS)
AUGMENTATIONS = ["host", "condensed", "dsa"]
each_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS)
each_layer = pytest.mark.parametrize("layer", ["penultimate", MIDDLE])
