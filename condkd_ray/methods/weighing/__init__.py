"""Weighing: how much each image counts while it is made."""

from condkd_ray.methods.weighing.equal import Equal as Equal
from condkd_ray.methods.weighing.modulating import Modulating as Modulating
from condkd_ray.methods.weighing.weighing import Weighing as Weighing

AnyWeighing = Equal | Modulating
