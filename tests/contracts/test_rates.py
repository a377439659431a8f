"""Methods reject learning rates that are negative or not finite, and rates of 0 that would train nothing."""

from dataclasses import fields
from typing import get_args

import pytest

from condkd_ray.core.method import InputError, Method
from condkd_ray.methods.condensation import AnyCondensation
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import AnyGuidance
from condkd_ray.methods.guidance.from_guides import FromGuides
from condkd_ray.methods.inversion import AnyInversion
from condkd_ray.methods.inversion.conditional import Conditional
from condkd_ray.methods.memory import AnyMemory
from condkd_ray.methods.supervised import Supervised

KINDS: list[type[Method]] = [
    *(kind for family in (AnyInversion, AnyGuidance, AnyMemory, AnyCondensation) for kind in get_args(family)),
    *(FromGuides, Distiller, Supervised),
]
MAY_BE_ZERO = ("last_lr", "step_lr")
FREEZE = [kind for kind in get_args(AnyInversion) if issubclass(kind, Conditional)]
"""With one rate of 0, their generator or their latents stay constant and the other is trained."""
RATES = [
    (kind, field.name)
    for kind in KINDS
    for field in fields(kind)
    if isinstance(field.default, float | None) and (field.name.endswith("lr") or field.name.startswith("lr_"))
]


def test_the_fields_with_learning_rates_are_found():
    assert len(RATES) >= 20
    assert {"lr", "lr_latent", "lr_recall", "expert_lr"} <= {name for _, name in RATES}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "name"), RATES, ids=lambda value: getattr(value, "__name__", value))
def test_an_invalid_learning_rate_is_rejected_with_the_fields_name(kind, name, rate):
    if rate == 0 and (name in MAY_BE_ZERO or kind in FREEZE):
        kind(**{name: rate})
        return
    with pytest.raises(InputError, match=rf"\b{name}\b.* is {rate}; accepted: "):
        kind(**{name: rate})
