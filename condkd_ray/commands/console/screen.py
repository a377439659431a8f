"""Progress lines: the last lines of a terminal, redrawn twice a second, with all messages above them.

It is not built on `rich`; `condkd_ray/docs/libraries.md` has the measured reasons.
"""

import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import chain
from threading import Event, RLock, Thread
from typing import Any, TextIO

REDRAW_SECONDS = 0.5
"""Time between two redraws."""
NO_WRAP, WRAP, REST_OF_LINE, BELOW = "\x1b[?7l", "\x1b[?7h", "\x1b[K", "\x1b[J"

Part = Callable[[int, int], list[str]]
"""Function of the largest number of columns and of rows, which returns lines. Called while the lock is held."""


class Screen:
    """Draws parts below one another at the bottom of the terminal on standard error; without a terminal, draws nothing.

    Write errors of the stream are ignored. The cursor stays on the line below the parts and is never hidden, so the
    terminal is usable however the process ends.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        """The original standard error while parts are drawn."""
        self.lock = RLock()
        """Held while parts are drawn; hold it to change the values that a part reads."""
        self._parts: list[Part] = []
        self._drawn: list[str] = []
        self._columns = 0
        self._ended = Event()
        self._redirected = ExitStack()

    @property
    def live(self) -> bool:
        """True if standard error is a terminal that can redraw lines."""
        return _is_terminal(self._stream or sys.stderr) and os.environ.get("TERM") != "dumb"

    @property
    def fine(self) -> bool:
        """True if the stream can encode line-drawing characters."""
        return _encoded("━", self._stream or sys.stderr) == "━"

    def message(self, text: str) -> None:
        """Write a message above the parts."""
        with self.lock:
            if self._parts:
                self._paint(text.rstrip("\n").split("\n"))
            else:
                _write(sys.stderr, f"{text}\n")

    @contextmanager
    def showing(self, part: Part) -> Iterator[None]:
        """Draw `part` below the others while the block runs; afterwards its lines are erased."""
        with self.lock:
            if shown := self.live:
                if not self._parts:
                    self._begin()
                self._parts.append(part)
        try:
            yield
        finally:
            with self.lock:
                if shown:
                    self._parts.remove(part)
                    if self._drawn:
                        self._paint()
                    if not self._parts:
                        self._end()

    def draw(self) -> None:
        """Redraw all parts if any line or the window has changed."""
        with self.lock:
            if self._parts:
                self._paint()

    def _begin(self) -> None:
        self._stream, self._ended = sys.stderr, Event()
        # Other output would break the lines, so it is redirected above them.
        self._take(redirect_stderr, sys.stderr)
        if _is_terminal(sys.stdout):
            self._take(redirect_stdout, sys.stdout)
        Thread(target=self._redraw, args=(self._ended,), daemon=True, name="screen").start()

    def _take(self, redirect: Callable[[Any], Any], stream: TextIO) -> None:
        above = _Above(self, stream)
        self._redirected.callback(above.flush_rest)
        self._redirected.enter_context(redirect(above))
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for handler in chain.from_iterable(getattr(logger, "handlers", ()) for logger in loggers):
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(above)
                self._redirected.callback(handler.setStream, stream)

    def _end(self) -> None:
        self._ended.set()
        self._redirected.close()
        self._stream = None

    def _redraw(self, ended: Event) -> None:
        while not ended.wait(REDRAW_SECONDS):
            self.draw()

    def _paint(self, above: list[str] | None = None) -> None:
        if not _in_foreground(self._stream):
            # Another program uses the terminal now, so the lines drawn before cannot be erased any more.
            self._drawn = []
            return _write(self._stream, "".join(f"{line}\n" for line in above or []))
        columns, rows = _size(self._stream)
        lines: list[str] = []
        for part in self._parts:
            lines += part(columns - 1, max(0, rows - 1 - len(lines)))
        lines = [line[: columns - 1] for line in lines[: rows - 1]]
        if lines == self._drawn and columns == self._columns and not above:
            return
        # Move back to the first drawn line. Most terminals rewrap lines when the window becomes narrower than these.
        up = sum(max(1, -(-len(line) // columns)) for line in self._drawn)
        back = "\r" + (f"\x1b[{min(up, rows - 1)}A" if up else "")
        self._drawn, self._columns = lines, columns
        message = "".join([BELOW, *(f"{line}\n" for line in above)]) if above else ""
        drawn = "".join([NO_WRAP, *(f"{line}{REST_OF_LINE}\n" for line in lines), BELOW, WRAP])
        _write(self._stream, back + message + drawn)


class _Above(io.TextIOBase):
    """Replaces a standard stream while parts are drawn, and writes complete lines above them."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self._screen, self._stream, self._line = screen, stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write complete lines, and keep an incomplete one for the next call."""
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._screen.message("\n".join(lines))
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream.isatty()

    def flush_rest(self) -> None:
        """Write the incomplete line, if any, with a line end."""
        if self._line:
            self.write("\n")


def _write(stream: Any, text: str) -> None:
    """Write and flush; errors are ignored, because a closed pipe or terminal must not end a long sweep."""
    with suppress(OSError, ValueError, AttributeError):
        stream.write(_encoded(text, stream))
        stream.flush()


def _encoded(text: str, stream: Any) -> str:
    """Return the text with a question mark for each character that the stream cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text.encode("ascii", "replace").decode("ascii")


def _is_terminal(stream: Any) -> bool:
    with suppress(AttributeError, ValueError, OSError):
        return bool(stream.isatty())
    return False


def _in_foreground(stream: Any) -> bool:
    with suppress(AttributeError, ValueError, OSError):  # the stream is not the controlling terminal of this process
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    return True


def _size(stream: Any) -> tuple[int, int]:
    """Return columns and rows of a stream's terminal, or of `COLUMNS` and `LINES`, or 80 and 24."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (AttributeError, ValueError, OSError):
        columns, rows = shutil.get_terminal_size()
    return columns or 80, rows or 24


def columns() -> int | None:
    """Return the width of the terminal on standard output; None if it is not a terminal."""
    return _size(sys.stdout)[0] if _is_terminal(sys.stdout) else None


SCREEN = Screen()
"""The progress lines on standard error, shared by the whole process."""
