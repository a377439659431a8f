"""What the inversion is asked for: a class an image, or a whole answer of the teacher."""

from condkd_ray.methods.targets.balanced import Balanced
from condkd_ray.methods.targets.soft import Soft
from condkd_ray.methods.targets.targets import TargetSource

AnyTargets = Balanced | Soft

__all__ = ["AnyTargets", "Balanced", "Soft", "TargetSource"]
