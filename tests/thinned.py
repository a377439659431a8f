"""Matrices of cases of which the default run tries some and the slow tests the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], default: Callable[[Any], bool]) -> list[Any]:
    """The cases of a `parametrize`, marked slow but for those that the default run tries."""
    found = list(cases)
    assert any(map(default, found)), "the default run would try none"
    return [case if default(case) else pytest.param(*_values(case), marks=pytest.mark.slow) for case in found]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
