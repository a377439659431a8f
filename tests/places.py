"""Folders that tests read or start programs in; and the skip of tests that lack a permission."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CHECKOUT = TESTS.parent
EXPERIMENTS = CHECKOUT / "experiments"
SPACES = CHECKOUT / "search_spaces"
README = CHECKOUT / "README.md"
INSTALLED = TESTS / "site-packages"
"""Modules that tests and the workers of their Ray cluster can import as if they were installed."""
DOCS = CHECKOUT / "condkd_ray" / "docs"


@contextmanager
def permitted() -> Iterator[None]:
    """Skip the test if its block needs a small machine or disk without the permission to make one."""
    from chaos.small_machine import NotAllowed  # on the path once `conftest.py` is read

    try:
        yield
    except NotAllowed as error:
        pytest.skip(str(error))
