"""Names of samplers and pruners, in a module of their own so that flags can be parsed without importing Optuna."""

from typing import Literal

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]
"""Tree-structured Parzen estimator, Gaussian process, uniform, quasi-Monte-Carlo (scrambled Sobol), full grid."""
Pruner = Literal["none", "asha", "hyperband", "median"]
"""No pruner; asynchronous successive halving; Hyperband (several brackets of it); worse than the median at a round."""
