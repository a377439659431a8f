"""Inversion methods, which synthesise images from a teacher. Each paper has its own file."""

from typing import get_args

from condkd_ray.core.families import Family
from condkd_ray.methods.inversion.cmi import Cmi
from condkd_ray.methods.inversion.dafl import Dafl
from condkd_ray.methods.inversion.deep_inversion import DeepInversion
from condkd_ray.methods.inversion.dfad import Dfad
from condkd_ray.methods.inversion.dfq import Dfq
from condkd_ray.methods.inversion.fast import Fast
from condkd_ray.methods.inversion.inversion import Inversion as Inversion
from condkd_ray.methods.inversion.inversion import NoInversion
from condkd_ray.methods.inversion.nayer import Nayer
from condkd_ray.methods.inversion.pre_dfkd import PreDfkd
from condkd_ray.methods.inversion.soft_target import SoftTarget
from condkd_ray.methods.inversion.zskt import Zskt

AnyInversion = Fast | Cmi | DeepInversion | Dafl | Zskt | Dfad | Dfq | PreDfkd | SoftTarget | Nayer | NoInversion
INVERSIONS = Family("inversion", Inversion, get_args(AnyInversion))
