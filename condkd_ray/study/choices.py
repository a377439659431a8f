"""What can be asked of a search by name. Apart from what does it, so that flags are known before Optuna is imported."""

from typing import Literal

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]
"""Tree-structured Parzen estimator, Gaussian process, uniform, quasi-Monte-Carlo (scrambled Sobol), every combination.
"""
Pruner = Literal["none", "asha", "hyperband", "median"]
"""Nobody; asynchronous successive halving; several brackets of it; below the median of earlier trials at that round."""
