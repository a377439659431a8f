"""Checks that a method satisfies the contract of its family, for use in the tests of plug-ins.

The methods of this package pass the same checks.

    from condkd_ray.testing import check

    def test_mine():
        check(Mine(steps=2, batch=16))

A check raises `AssertionError` with the rule that the method breaks. Checks need no network access, no data files and
no test framework.
"""

from collections.abc import Callable
from typing import Any

from condkd_ray.core.families import family_of
from condkd_ray.testing.datasets import check_dataset
from condkd_ray.testing.drawing import check_condensation, check_memory, check_targets, check_weighing
from condkd_ray.testing.guidances import check_guidance
from condkd_ray.testing.inversions import check_inversion
from condkd_ray.testing.losses import check_kd_loss
from condkd_ray.testing.networks import check_network
from condkd_ray.testing.states import check_config

CHECKS: dict[str, Callable[[Any], None]] = {
    "inversion": check_inversion,
    "guidance": check_guidance,
    "networks": check_network,
    "datasets": check_dataset,
    "kd_loss": check_kd_loss,
    "targets": check_targets,
    "weighing": check_weighing,
    "memory": check_memory,
    "condensation": check_condensation,
}
"""The check of each family, by family name."""


def check(method: Any) -> None:
    """Check a method of any family: first its class and config, then the contract of its family.

    Raises `AssertionError` with the rule that the method breaks.
    """
    check_config(method)
    family = family_of(type(method))
    assert family is not None
    CHECKS[family.name](method)
