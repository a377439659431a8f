"""Test matrices of which the default run includes some cases, and the slow tests the others."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], default: Callable[[Any], bool]) -> list[Any]:
    """Return the cases for `parametrize`, with the mark `slow` on those for which `default` is false."""
    found = list(cases)
    assert any(map(default, found)), "the default run would have no cases"
    return [case if default(case) else pytest.param(*_values(case), marks=pytest.mark.slow) for case in found]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
