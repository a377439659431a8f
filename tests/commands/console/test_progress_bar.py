from __future__ import annotations

import io

import pytest

from commands.console.terminals import Terminal
from condkd_ray.commands.console import Screen, bar
from condkd_ray.commands.console import screen as module


@pytest.fixture(autouse=True)
def still(monkeypatch):
    monkeypatch.setattr(module, "REDRAW_SECONDS", 3600)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("TERM", raising=False)


def test_a_bar_shows_share_and_time_left_and_is_gone_at_the_end():
    terminal, now = Terminal(60), [100.0]
    screen = Screen(terminal)
    with bar("teacher", screen, lambda: now[0]) as on_step:
        screen.draw()
        assert terminal.lines == ["teacher  0 s"]
        now[0] += 30
        on_step(1, 4)
        screen.draw()
        assert terminal.lines == ["teacher  ━━━━──────────   25%  30 s  left 1 min 30 s"]
        on_step(4, 4)
        screen.draw()
        assert terminal.lines == ["teacher  ━━━━━━━━━━━━━━  100%  30 s"]
    assert terminal.lines == [""]


def test_an_error_takes_the_bar_away():
    terminal = Terminal(60)
    screen = Screen(terminal)

    def interrupted() -> None:
        with bar("teacher", screen):
            screen.draw()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.lines == [""]


def test_a_file_hears_nothing():
    stream = io.StringIO()
    with bar("teacher", Screen(stream)) as on_step:
        on_step(1, 2)
    assert stream.getvalue() == ""
