from collections.abc import Callable

import pytest

from condkd_ray.commands.console import live
from condkd_ray.commands.console.screen import Screen


@pytest.fixture
def screen_on(monkeypatch) -> Callable[[object], Screen]:
    """Makes a screen of a stream, which is standard error from then on, and the one that all is shown on."""

    def screen_on(stream: object) -> Screen:
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(live, "SCREEN", Screen())
        return live.SCREEN

    return screen_on
