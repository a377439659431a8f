"""Condensation methods: each makes a few labelled images per class that represent a whole data set.

A new member is a frozen dataclass that derives from `Condensation` and is added to a union below.
"""

from typing import get_args

from condkd_ray.core.families import Family
from condkd_ray.methods.condensation.condensation import AllReal, Herding, RandomReal
from condkd_ray.methods.condensation.condensation import Condensation as Condensation
from condkd_ray.methods.condensation.imported import Imported
from condkd_ray.methods.condensation.matching import DistributionMatching, GradientMatching
from condkd_ray.methods.condensation.squeeze_recover import SqueezeRecover
from condkd_ray.methods.condensation.trajectory_matching import TrajectoryMatching

_Real = RandomReal | AllReal | Herding
_Matching = DistributionMatching | GradientMatching | TrajectoryMatching
AnyCondensation = _Real | _Matching | SqueezeRecover | Imported
CONDENSATIONS = Family("condensation", Condensation, get_args(AnyCondensation))
