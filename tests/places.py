"""Folders that tests start programs in, or read files of; and what they may not do here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CHECKOUT = TESTS.parent
EXPERIMENTS = CHECKOUT / "experiments"
SPACES = CHECKOUT / "search_spaces"
README = CHECKOUT / "README.md"
DOCS = CHECKOUT / "condkd_ray" / "docs"


@contextmanager
def permitted() -> Iterator[None]:
    """Skip the test where its block asks for a small machine or disk that we may not make."""
    from chaos.small_machine import NotAllowed  # on the path once `conftest.py` is read

    try:
        yield
    except NotAllowed as error:
        pytest.skip(str(error))
