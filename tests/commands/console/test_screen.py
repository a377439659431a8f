"""The progress lines at the bottom of a terminal: redrawn in place, below messages, also on faulty streams."""

import io
import logging
import sys
import time

import pytest

from commands.console.terminals import Terminal
from condkd_ray.commands.console import screen as module
from condkd_ray.commands.console.screen import Screen


@pytest.fixture(autouse=True)
def size(monkeypatch):
    """Disable the timer that redraws, and set the size of the terminal to 40 by 10."""
    monkeypatch.setattr(module, "REDRAW_SECONDS", 3600)
    resize(monkeypatch, 40, 10)
    monkeypatch.delenv("TERM", raising=False)


def resize(monkeypatch, columns, rows):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))


def test_parts_are_redrawn_in_place_and_removed_at_the_end(screen_on):
    terminal, shown = Terminal(40, 10), ["a", "b", "c"]
    screen = screen_on(terminal)
    screen.message("before")
    with screen.showing(lambda columns, rows: shown):
        for lines in (["a", "b", "c"], ["d"], ["e", "f"]):
            shown[:] = lines
            screen.draw()
            assert terminal.lines == ["before", *lines]
            assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 1 + len(lines))
    screen.message("after")
    assert terminal.lines == ["before", "after"]
    assert not any("\x1b[?25l" in text for text in terminal.writes)


def test_messages_appear_above_the_parts(monkeypatch, screen_on):
    terminal = Terminal(40, 10)
    screen = screen_on(terminal)
    with screen.showing(lambda columns, rows: ["one", "two"]), screen.showing(lambda columns, rows: ["three"]):
        screen.draw()
        screen.message("said\nin two lines")
        screen.message("x" * 45)
        assert terminal.lines == ["said", "in two lines", "x" * 40, "x" * 5, "one", "two", "three"]
    assert terminal.lines == ["said", "in two lines", "x" * 40, "x" * 5]


def test_a_drawing_is_one_write_and_an_unchanged_one_none(screen_on):
    terminal, shown = Terminal(40, 10), ["a"]
    screen = screen_on(terminal)
    with screen.showing(lambda columns, rows: list(shown)):
        for _ in range(5):
            screen.draw()
        assert len(terminal.writes) == 1
        shown[:] = ["b"]
        screen.draw()
        assert len(terminal.writes) == 2


def test_parts_are_redrawn_by_a_timer_and_not_too_often(monkeypatch, screen_on):
    monkeypatch.setattr(module, "REDRAW_SECONDS", 0.02)
    terminal, count = Terminal(40, 10), 0
    screen = screen_on(terminal)

    def part(columns: int, rows: int) -> list[str]:
        nonlocal count
        count += 1
        return [str(count)]

    begin = time.monotonic()
    with screen.showing(part):
        while count < 5:
            assert time.monotonic() - begin < 30
            time.sleep(0.005)
        assert count <= (time.monotonic() - begin) / 0.02 + 1
    before = len(terminal.writes)
    time.sleep(0.06)
    assert len(terminal.writes) == before


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 2), (10, 3), (40, 10)])
def test_lines_fit_the_width_and_the_height_of_the_terminal(monkeypatch, columns, rows, screen_on):
    resize(monkeypatch, columns, rows)
    terminal = Terminal(columns, rows)
    screen = screen_on(terminal)
    shown = [f"{number}" * 100 for number in range(9)] * 3
    with screen.showing(lambda columns, rows: shown):
        for _ in range(3):
            shown.append(shown.pop(0))
            screen.draw()
        assert terminal.lines == [line[: columns - 1] for line in shown[: rows - 1]] or [""]


def test_wide_characters_do_not_break_a_line(screen_on):
    terminal = Terminal(40, 10)
    screen = screen_on(terminal)
    with screen.showing(lambda columns, rows: ["蒸" * 39, f"{len(terminal.writes)}"]):
        for _ in range(3):
            screen.draw()
        assert len(terminal.lines) == 2


def test_lines_broken_by_a_narrower_window_are_drawn_over(monkeypatch, screen_on):
    terminal = Terminal(40, 10)
    screen = screen_on(terminal)
    with screen.showing(lambda columns, rows: ["x" * 39, "y" * 39]):
        screen.draw()
        resize(monkeypatch, 20, 10)
        screen.draw()
    # Each of 39 characters has become two lines.
    assert terminal.writes[1].startswith("\r\x1b[4A")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "ä ━"), ("latin-1", "ä ?"), ("ascii", "? ?"), ("none", "? ?")]
)
def test_characters_that_the_encoding_lacks_become_question_marks(encoding, shown, screen_on):
    terminal = Terminal(40, 10)
    terminal.encoding = encoding
    screen = screen_on(terminal)
    assert screen.fine == ("━" in shown)
    with screen.showing(lambda columns, rows: ["ä ━"]):
        screen.draw()
        assert terminal.lines == [shown]


@pytest.mark.parametrize("dumb", [True, False])
def test_nothing_is_drawn_without_a_terminal(monkeypatch, dumb, screen_on):
    stream = Terminal() if dumb else io.StringIO()
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    screen = screen_on(stream)
    assert not screen.live
    with screen.showing(lambda columns, rows: ["drawn"]):
        screen.draw()
        screen.message("said")
    written = "".join(stream.writes) if isinstance(stream, Terminal) else stream.getvalue()
    assert written == "said\n"


class Odd:
    def isatty(self) -> bool:
        raise ValueError("closed")


class Gone(Terminal):
    def write(self, s: str) -> int:
        raise OSError(5, "Input/output error")


class Pipe(Terminal):
    def flush(self) -> None:
        raise BrokenPipeError


def closed() -> Terminal:
    terminal = Terminal()
    terminal.close()
    return terminal


@pytest.mark.parametrize("stream", [Odd(), Gone(), Pipe(), closed(), object()])
def test_a_stream_that_cannot_be_written_is_not_used_again(stream, screen_on):
    screen = screen_on(stream)
    with screen.showing(lambda columns, rows: ["line"]):
        screen.draw()
        screen.message("word")
    screen.message("word")


def test_a_process_without_standard_error_draws_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    screen = Screen()
    with screen.showing(lambda columns, rows: ["line"]):
        screen.message("word")


def test_output_to_standard_streams_appears_above_the_parts(monkeypatch):
    terminal = Terminal(80, 10)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("condkd_ray.tests.screen")
    logger.addHandler(handler)
    logger.propagate = False
    screen = Screen()
    with screen.showing(lambda columns, rows: ["part"]):
        screen.draw()
        print("printed")
        logger.error("logged")
        print("half", end="", file=sys.stderr)
        assert terminal.lines == ["printed", "logged", "part"]
    assert terminal.lines == ["printed", "logged", "half"]
    assert (sys.stderr, sys.stdout, handler.stream) == (terminal, terminal, terminal)
    logger.removeHandler(handler)


def test_standard_output_that_is_no_terminal_is_not_redirected(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Screen().showing(lambda columns, rows: ["part"]):
        print("result")
    assert capsys.readouterr().out == "result\n"
    assert terminal.writes == []
