"""Paths of real data sets that are not in the repository; tests that need one are skipped if it is missing."""

import os
from pathlib import Path

import pytest

BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    """Return a file or folder in `$CONDKD_TEST_DATA`, or in the folder `shared/data` beside the checkout."""
    path = Path(os.environ.get("CONDKD_TEST_DATA", BESIDE_CHECKOUT)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there: point CONDKD_TEST_DATA to a folder that has it")
    return path
