"""The selection of the test images that are measured in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from condkd_ray.data.datasets import RealImages

ROUND_SUBSET = 1000
"""Maximum number of validation images measured in a round; also of test images, unless the config selects all."""
DENSE_SUBSET = 100
"""The same number in segmentation, where all pixels count (our choice). The images are spread evenly over the set,
because neighbours in a set are often frames of one film."""
TestRounds = Literal["subset", "full"]
"""Test images measured in a round: at most `ROUND_SUBSET`, in segmentation `DENSE_SUBSET` (our choice), or all (as for
PRE-DFKD's mean and variance)."""


def in_round(test: RealImages, rounds: TestRounds) -> RealImages:
    """Return the test images that are measured in a round."""
    if rounds == "full":
        return test
    if test.labels.ndim == 1:
        return test[:ROUND_SUBSET]
    return test.spread(min(len(test), DENSE_SUBSET))
