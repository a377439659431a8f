"""Inversion: a teacher turned back into images. One kind of host, one file."""

from condkd_ray.methods.inversion.conditional import Cmi, Fast, Nayer
from condkd_ray.methods.inversion.inversion import Inversion as Inversion
from condkd_ray.methods.inversion.inversion import NoInversion
from condkd_ray.methods.inversion.pixelwise import DeepInversion, SoftTarget
from condkd_ray.methods.inversion.unconditional import Dafl, Dfad, Dfq, PreDfkd, Zskt

AnyInversion = Fast | Cmi | DeepInversion | Dafl | Zskt | Dfad | Dfq | PreDfkd | SoftTarget | Nayer | NoInversion
