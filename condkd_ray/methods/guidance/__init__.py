"""Guidance methods: penalties that move synthetic images towards condensed images in the teacher's feature space."""

from typing import get_args

from condkd_ray.core.families import Family
from condkd_ray.methods.guidance.discriminator import Discriminator
from condkd_ray.methods.guidance.from_guides import FromGuides as FromGuides
from condkd_ray.methods.guidance.gaussian import Gaussian
from condkd_ray.methods.guidance.guidance import Guidance as Guidance
from condkd_ray.methods.guidance.guidance import NoGuidance
from condkd_ray.methods.guidance.matching import Mmd, Moments

AnyGuidance = NoGuidance | Discriminator | Mmd | Moments | Gaussian
GUIDANCES = Family("guidance", Guidance, get_args(AnyGuidance))
FORMS: dict[str, Discriminator | Mmd | Moments | Gaussian] = {
    "projection": Discriminator(),
    "auxiliary": Discriminator(condition="auxiliary"),
    "per_class": Discriminator(condition="per_class"),
    "unconditional": Discriminator(condition="none"),
    "hinge": Discriminator(condition="auxiliary", loss="hinge"),
    "mmd": Mmd(),
    "moments": Moments(),
    "gaussian": Gaussian(),
}
"""Variants of guidance by their names in tables, each with its default weight."""
