"""Inversion: a teacher turned back into images. One paper, one file."""

from condkd_ray.inversion.cmi import Cmi
from condkd_ray.inversion.dafl import Dafl
from condkd_ray.inversion.deep_inversion import DeepInversion
from condkd_ray.inversion.dfad import Dfad
from condkd_ray.inversion.dfq import Dfq
from condkd_ray.inversion.fast import Fast
from condkd_ray.inversion.inversion import Inversion
from condkd_ray.inversion.nayer import Nayer
from condkd_ray.inversion.no_inversion import NoInversion
from condkd_ray.inversion.pre_dfkd import PreDfkd
from condkd_ray.inversion.soft_target import SoftTarget
from condkd_ray.inversion.zskt import Zskt

AnyInversion = Fast | Cmi | DeepInversion | Dafl | Zskt | Dfad | Dfq | PreDfkd | SoftTarget | Nayer | NoInversion

__all__ = [
    "AnyInversion",
    "Cmi",
    "Dafl",
    "DeepInversion",
    "Dfad",
    "Dfq",
    "Fast",
    "Inversion",
    "Nayer",
    "NoInversion",
    "PreDfkd",
    "SoftTarget",
    "Zskt",
]
