"""Inversion: a teacher turned back into images. One paper, one file."""

from condkd_ray.methods.inversion.cmi import Cmi as Cmi
from condkd_ray.methods.inversion.dafl import Dafl as Dafl
from condkd_ray.methods.inversion.deep_inversion import DeepInversion as DeepInversion
from condkd_ray.methods.inversion.dfad import Dfad as Dfad
from condkd_ray.methods.inversion.dfq import Dfq as Dfq
from condkd_ray.methods.inversion.fast import Fast as Fast
from condkd_ray.methods.inversion.inversion import Inversion as Inversion
from condkd_ray.methods.inversion.nayer import Nayer as Nayer
from condkd_ray.methods.inversion.no_inversion import NoInversion as NoInversion
from condkd_ray.methods.inversion.pre_dfkd import PreDfkd as PreDfkd
from condkd_ray.methods.inversion.soft_target import SoftTarget as SoftTarget
from condkd_ray.methods.inversion.zskt import Zskt as Zskt

AnyInversion = Fast | Cmi | DeepInversion | Dafl | Zskt | Dfad | Dfq | PreDfkd | SoftTarget | Nayer | NoInversion
