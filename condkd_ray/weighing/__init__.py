"""Weighing: how much each image counts while it is made."""

from condkd_ray.weighing.equal import Equal
from condkd_ray.weighing.modulating import Modulating
from condkd_ray.weighing.weighing import Weighing

AnyWeighing = Equal | Modulating

__all__ = ["AnyWeighing", "Equal", "Modulating", "Weighing"]
