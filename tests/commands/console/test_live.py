"""Trials as they run: a table on a terminal that is gone at the end, a line a finished trial in a file."""

import io

import pytest

from commands.console.terminals import Terminal
from condkd_ray.commands.console import Screen, bar
from condkd_ray.commands.console import screen as module
from condkd_ray.commands.console.live import Live
from condkd_ray.commands.console.progress import Progress
from condkd_ray.core.view import Goal


@pytest.fixture(autouse=True)
def still(monkeypatch):
    monkeypatch.setattr(module, "REDRAW_SECONDS", 3600)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("TERM", raising=False)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def row(number: int, value: float = 0.5) -> dict[str, float]:
    return {"round": number, "proxy/agreement": value, "student/test_accuracy": 0.999}


def test_a_file_gets_one_line_a_finished_trial():
    stream, clock = io.StringIO(), Clock()
    live = Live(Progress(12, clock=clock), Screen(stream))
    for number in (1, 2):
        clock.now += 5
        live.round("a", "mixed seed 0", row(number), 2)
    live.finished("a", "mixed seed 0", "finished", 0.91234)
    live.finished("b", "guided seed 0", "failed", None)
    live.finished("c", "guided seed 1", "finished", float("nan"))
    live.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[ 1/12] mixed seed 0 91.23 %, left 1 min 50 s"
    assert lines[1].startswith("[ 2/12] guided seed 0 failed, 1 failed")
    assert lines[2].startswith("[ 3/12] guided seed 1 no accuracy")
    assert len(lines) == 3


def test_of_a_search_a_file_hears_the_objective_and_never_test_accuracy():
    stream = io.StringIO()
    live = Live(Progress(3, Goal(decides=True)), Screen(stream))
    for key, value in (("a", 0.5), ("b", 0.25)):
        live.round(key, f"trial {key}", row(1, value), 2)
        live.finished(key, f"trial {key}", "finished" if key == "a" else "pruned", 0.999)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("[1/3] trial a finished, proxy/agreement 0.5000")
    assert second.startswith("[2/3] trial b pruned, proxy/agreement 0.2500")
    assert second.endswith("; best so far trial a, 0.5000")
    assert "99" not in stream.getvalue()


def test_a_terminal_gets_a_table_that_is_one_line_at_the_end():
    terminal, clock = Terminal(), Clock()
    screen = Screen(terminal)
    live = Live(Progress(2, Goal(decides=True), clock=clock), screen)
    live.round("a", "trial 0", row(1), 4)
    screen.draw()
    assert terminal.lines[-1] == "trial 0    1/4           0.5000  0.5000"
    live.finished("a", "trial 0", "finished", 0.999, leaves={"leaf": 0.123456})
    live.finished("b", "trial 1", "failed", None)
    screen.draw()
    assert terminal.lines[1:3] == ["best: trial 0, proxy/agreement 0.5000", "  leaf 0.1235"]
    clock.now = 75
    live.close()
    assert terminal.lines == ["2 of 2 trials, 1 failed in 1 min 15 s"]
    assert "99" not in "".join(terminal.writes)


def test_a_bar_shows_share_and_time_left_and_is_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
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


def test_a_file_hears_nothing_of_a_bar():
    stream = io.StringIO()
    with bar("teacher", Screen(stream)) as on_step:
        on_step(1, 2)
    assert stream.getvalue() == ""
