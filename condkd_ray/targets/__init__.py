"""What the inversion is asked for: a class an image, or a whole answer of the teacher."""

from condkd_ray.targets.balanced import Balanced
from condkd_ray.targets.source import TargetSource

AnyTargets = Balanced

__all__ = ["AnyTargets", "Balanced", "TargetSource"]
