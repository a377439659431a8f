"""Inversion: a teacher turned back into images. One paper, one file."""

from condkd_ray.inversion.dafl import Dafl
from condkd_ray.inversion.deep_inversion import DeepInversion
from condkd_ray.inversion.fast import Fast
from condkd_ray.inversion.inversion import Inversion, equal_weights
from condkd_ray.inversion.no_inversion import NoInversion

AnyInversion = Fast | DeepInversion | Dafl | NoInversion

__all__ = ["AnyInversion", "Dafl", "DeepInversion", "Fast", "Inversion", "NoInversion", "equal_weights"]
