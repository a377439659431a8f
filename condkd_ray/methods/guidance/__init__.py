"""Guidance: condensed images steer the inversion through the teacher's features."""

from condkd_ray.methods.guidance.discriminator import Discriminator
from condkd_ray.methods.guidance.guidance import BoundGuide, Guidance
from condkd_ray.methods.guidance.mmd import Mmd
from condkd_ray.methods.guidance.moments import Moments
from condkd_ray.methods.guidance.no_guidance import NoGuidance

AnyGuidance = NoGuidance | Discriminator | Mmd | Moments

__all__ = ["AnyGuidance", "BoundGuide", "Discriminator", "Guidance", "Mmd", "Moments", "NoGuidance"]
