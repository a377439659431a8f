"""Names of samplers and pruners. This module does not import Optuna, so that flags can be parsed without it."""

from typing import Literal

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]
"""Tree-structured Parzen estimator, Gaussian process, uniform, quasi-Monte-Carlo (scrambled Sobol), full grid."""
Pruner = Literal["none", "asha", "hyperband", "median"]
"""No pruner; asynchronous successive halving; Hyperband (several brackets of successive halving); a pruner that stops
trials worse than the median of the earlier ones at the same round."""
