"""Guidance: condensed images steer the inversion through the teacher's features."""

from condkd_ray.methods.guidance.discriminator import Discriminator as Discriminator
from condkd_ray.methods.guidance.guidance import BoundGuide as BoundGuide
from condkd_ray.methods.guidance.guidance import Guidance as Guidance
from condkd_ray.methods.guidance.mmd import Mmd as Mmd
from condkd_ray.methods.guidance.moments import Moments as Moments
from condkd_ray.methods.guidance.no_guidance import NoGuidance as NoGuidance

AnyGuidance = NoGuidance | Discriminator | Mmd | Moments
