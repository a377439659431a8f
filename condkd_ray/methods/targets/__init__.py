"""What the inversion is asked for: a class an image, or a whole answer of the teacher."""

from condkd_ray.methods.targets.balanced import Balanced as Balanced
from condkd_ray.methods.targets.soft import Soft as Soft
from condkd_ray.methods.targets.targets import TargetSource as TargetSource

AnyTargets = Balanced | Soft
