from collections.abc import Callable

import pytest

from condkd_ray.commands.console import live
from condkd_ray.commands.console.screen import Screen


@pytest.fixture
def screen_on(monkeypatch) -> Callable[[object], Screen]:
    """Return a function that makes a screen of a stream; both replace standard error and the screen of the package."""

    def screen_on(stream: object) -> Screen:
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(live, "SCREEN", Screen())
        return live.SCREEN

    return screen_on
