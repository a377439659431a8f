"""The last lines of a terminal, drawn again twice a second, with all that is said meanwhile above them.

Written here and not by `rich`, whose `Live` ends the process when a pipe is closed, raises where a character cannot be
encoded, leaves rubbish behind when a window gets narrower, hides the cursor, which then stays hidden if the process is
killed, and takes 7 ms for a table of 20 rows (0.1 ms here).
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
NO_WRAP, WRAP, REST_OF_LINE, BELOW = "\x1b[?7l", "\x1b[?7h", "\x1b[K", "\x1b[J"

Part = Callable[[int, int], list[str]]
"""Lines of at most so many columns, and so many of them at most; called under the screen's lock."""


class Screen:
    """Parts below one another at the end of the terminal that standard error is. Where it is none they are not drawn.

    A stream that cannot be written to any more is left alone.
    The cursor waits on the line below the parts, and is never hidden: whatever ends the process leaves a clean line.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        """While parts are drawn: what standard error was before."""
        self.lock = RLock()
        """Held while parts are drawn: whoever changes what they tell of takes it too."""
        self._parts: list[Part] = []
        self._drawn: list[str] = []
        self._columns = 0
        self._ended = Event()
        self._redirected = ExitStack()

    @property
    def live(self) -> bool:
        """Whether parts would be drawn."""
        return _is_terminal(self._stream or sys.stderr) and os.environ.get("TERM") != "dumb"

    @property
    def fine(self) -> bool:
        """Whether the stream has characters beyond ASCII."""
        return _encoded("━", self._stream or sys.stderr) == "━"

    def say(self, text: str) -> None:
        """Lines for the user, above the parts."""
        with self.lock:
            if self._parts:
                self._paint(text.rstrip("\n").split("\n"))
            else:
                _write(sys.stderr, f"{text}\n")

    @contextmanager
    def showing(self, part: Part) -> Iterator[None]:
        """It is drawn below the others while the block runs. The last one leaves nothing behind."""
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
        """All parts as they are now, unless that is what can be seen already."""
        with self.lock:
            if self._parts:
                self._paint()

    def _begin(self) -> None:
        self._stream, self._ended = sys.stderr, Event()
        # What warns or prints meanwhile would tear the lines.
        self._take(redirect_stderr, sys.stderr)
        if _is_terminal(sys.stdout):
            self._take(redirect_stdout, sys.stdout)
        Thread(target=self._redraw, args=(self._ended,), daemon=True, name="screen").start()

    def _take(self, redirect: Callable[[Any], Any], stream: TextIO) -> None:
        above = _Above(self, stream)
        self._redirected.callback(above.rest)
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
            # The terminal is another program's just now; what we have drawn there is no longer ours.
            self._drawn = []
            return _write(self._stream, "".join(f"{line}\n" for line in above or []))
        columns, rows = _size(self._stream)
        lines: list[str] = []
        for part in self._parts:
            lines += part(columns - 1, max(0, rows - 1 - len(lines)))
        lines = [line[: columns - 1] for line in lines[: rows - 1]]
        if lines == self._drawn and columns == self._columns and not above:
            return
        # Back to the first line drawn. Most terminals have broken lines anew for which they have become too narrow.
        up = sum(max(1, -(-len(line) // columns)) for line in self._drawn)
        back = "\r" + (f"\x1b[{min(up, rows - 1)}A" if up else "")
        self._drawn, self._columns = lines, columns
        said = "".join([BELOW, *(f"{line}\n" for line in above)]) if above else ""
        drawn = "".join([NO_WRAP, *(f"{line}{REST_OF_LINE}\n" for line in lines), BELOW, WRAP])
        _write(self._stream, back + said + drawn)


class _Above(io.TextIOBase):
    """A standard stream while parts are drawn: whole lines go above them."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self._screen, self._stream, self._kept = screen, stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Keeps a line until it is whole."""
        *lines, self._kept = (self._kept + text).split("\n")
        if lines:
            self._screen.say("\n".join(lines))
        return len(text)

    def fileno(self) -> int:
        """Of the stream itself."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """As the stream itself."""
        return self._stream.isatty()

    def rest(self) -> None:
        """A last line that was not ended."""
        if self._kept:
            self.write("\n")


def _write(stream: Any, text: str) -> None:
    """If it can be written: a closed pipe or terminal must not end a sweep of hours."""
    with suppress(OSError, ValueError, AttributeError):
        stream.write(_encoded(text, stream))
        stream.flush()


def _encoded(text: str, stream: Any) -> str:
    """With a question mark for each character that the stream does not have."""
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
    with suppress(AttributeError, ValueError, OSError):  # else it is not the terminal that rules this process
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    return True


def _size(stream: Any) -> tuple[int, int]:
    """Columns and rows."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (AttributeError, ValueError, OSError):
        columns, rows = shutil.get_terminal_size()
    return columns or 80, rows or 24


def columns() -> int | None:
    """Of the terminal that standard output is, if it is one."""
    return _size(sys.stdout)[0] if _is_terminal(sys.stdout) else None


SCREEN = Screen()
"""Of standard error, for all of this process."""
