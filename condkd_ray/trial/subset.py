"""Which validation and test images are measured in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from condkd_ray.data.datasets import RealImages

ROUND_SUBSET = 1000
"""Validation images measured in a round, at most; test images too, unless a config asks for all in each round."""
TestRounds = Literal["subset", "full"]
"""Test images measured in a round: at most `ROUND_SUBSET` (our choice), or all (PRE-DFKD's mean and variance)."""


def in_round(test: RealImages, rounds: TestRounds) -> RealImages:
    """The test images that are measured in a round."""
    return test if rounds == "full" else test[:ROUND_SUBSET]
