"""Condensation: a few labelled images per class that stand for a whole data set.

A member is one file: a frozen dataclass with `condense` and `whole`, named as its `name` says, and a line here.
"""

from condkd_ray.methods.condensation.all_real import AllReal as AllReal
from condkd_ray.methods.condensation.condensation import Condensation as Condensation
from condkd_ray.methods.condensation.distribution_matching import DistributionMatching as DistributionMatching
from condkd_ray.methods.condensation.gradient_matching import GradientMatching as GradientMatching
from condkd_ray.methods.condensation.herding import Herding as Herding
from condkd_ray.methods.condensation.imported import Imported as Imported
from condkd_ray.methods.condensation.random_real import RandomReal as RandomReal
from condkd_ray.methods.condensation.squeeze_recover import SqueezeRecover as SqueezeRecover
from condkd_ray.methods.condensation.trajectory_matching import TrajectoryMatching as TrajectoryMatching

AnyCondensation = (
    RandomReal
    | AllReal
    | Herding
    | DistributionMatching
    | GradientMatching
    | TrajectoryMatching
    | SqueezeRecover
    | Imported
)
