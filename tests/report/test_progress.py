"""The progress line, on a terminal, in a file and on streams that misbehave."""

from __future__ import annotations

import io

import pytest

from condkd_ray.report.progress import Progress, duration


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_gets_one_line_a_finished_trial():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(12, stream, clock)
    for number in (1, 2):
        clock.now += 5
        progress.round("a", "mixed seed 0", number, 2)
    progress.finished("a", "mixed seed 0", 0.91234)
    progress.finished("b", "guided seed 0", None, "failed")
    progress.finished("c", "guided seed 1", float("nan"))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[ 1/12] mixed seed 0 91.23 %, left 1 min 50 s"
    assert lines[1].startswith("[ 2/12] guided seed 0 failed, 1 failed")
    assert lines[2].startswith("[ 3/12] guided seed 1 no accuracy")
    assert len(lines) == 3


def test_a_terminal_gets_one_live_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream, clock = Terminal(), Clock()
    progress = Progress(6, stream, clock)
    for key in "abcde":
        clock.now += 1
        progress.round(key, f"trial {key}", 1, 4)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith(
        "\r\x1b[K0/6 trials | running trial a 1/4, trial b 1/4, trial c 1/4 and 2 more | left --"
    )
    progress.finished("a", "trial ä", 0.5)
    progress.finished("b", "trial b", None, "failed")
    progress.close()
    assert "last trial ? 50.00 %" in stream.getvalue()
    assert "2/6 trials | 1 failed |" in stream.getvalue().splitlines()[-1]
    assert stream.getvalue().endswith("\n")
    before = stream.getvalue()
    progress.round("c", "late", 2, 4)
    progress.finished("c", "late", 0.5)
    progress.close()
    assert stream.getvalue() == before


def test_the_live_line_fits_and_is_not_redrawn_too_often(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream, clock = Terminal(), Clock()
    progress = Progress(6, stream, clock)
    for number in range(50):
        clock.now += 0.01
        progress.round("a", "a rather long name of a trial", number + 1, 50)
    drawn = stream.getvalue().split("\r\x1b[K")[1:]
    assert len(drawn) == 5
    assert all(len(line) <= 29 for line in drawn)


def test_time_left_is_unknown_at_first_and_then_right():
    clock = Clock()
    progress = Progress(3, io.StringIO(), clock)
    assert progress.seconds_left() is None
    for number in range(1, 5):
        clock.now += 10
        progress.round("a", "a", number, 4)
        expected = None if number == 1 else (4 - number + 8) * 10
        assert progress.seconds_left() == expected
    progress.finished("a", "a", 0.5)
    assert progress.seconds_left() == 80
    progress.finished("b", "b", None, "failed")
    progress.finished("c", "c", None, "failed")
    assert progress.seconds_left() == 0


def test_a_resumed_trial_counts_only_the_rounds_seen():
    clock = Clock()
    progress = Progress(1, io.StringIO(), clock)
    for number in (7, 8):
        clock.now += 10
        progress.round("a", "a", number, 10)
    assert progress.seconds_left() == pytest.approx(20)
    progress.round("a", "a", 6, 10)
    assert progress.seconds_left() == pytest.approx(40)


def test_failures_alone_give_no_estimate():
    progress = Progress(2, io.StringIO(), Clock())
    progress.finished("a", "a", None, "failed")
    assert progress.seconds_left() is None
    assert progress.line() == "1/2 trials | 1 failed | last a failed | left --"


class Odd:
    def isatty(self) -> bool:
        raise ValueError("closed")


class Pipe(Terminal):
    def write(self, s: str) -> int:
        raise BrokenPipeError


class Lost(Terminal):
    encoding = "no such encoding"


@pytest.mark.parametrize("stream", [Odd(), Pipe(), Lost(), object()])
def test_odd_streams_are_left_alone(stream):
    use(stream)


def test_closed_streams_are_left_alone():
    for stream in (io.StringIO(), Terminal()):
        stream.close()
        use(stream)


def test_no_standard_error_at_all(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    use(None)


def test_standard_error_is_the_default(capsys):
    use(None)
    assert capsys.readouterr().err.startswith("[1/2] a 50.00 %")


def use(stream) -> None:
    progress = Progress(2, stream)
    progress.round("a", "a", 1, 2)
    progress.finished("a", "a", 0.5)
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "--"), (float("inf"), "--"), (0, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min"), (100800, "1 d 04 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
