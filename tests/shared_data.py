"""Where real data sets lie that not everyone has; tests of them are skipped, with the reason, where there are none."""

import os
from pathlib import Path

import pytest

BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    """A file or folder of `$CONDKD_TEST_DATA`, or of the folder `shared/data` beside the checkout."""
    path = Path(os.environ.get("CONDKD_TEST_DATA", BESIDE_CHECKOUT)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not there: point CONDKD_TEST_DATA to a folder that has it")
    return path
