"""Weighing: how much each image counts while it is made."""

from condkd_ray.methods.weighing.equal import Equal
from condkd_ray.methods.weighing.modulating import Modulating
from condkd_ray.methods.weighing.weighing import Weighing

AnyWeighing = Equal | Modulating

__all__ = ["AnyWeighing", "Equal", "Modulating", "Weighing"]
