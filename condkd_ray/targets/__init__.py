"""What the inversion is asked for: balanced labels (soft targets join the union later)."""

from condkd_ray.targets.balanced import Balanced

AnyTargets = Balanced

__all__ = ["AnyTargets", "Balanced"]
