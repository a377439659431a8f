"""Output of programs in a real pseudo-terminal, also after Ctrl-C and after the terminal was closed."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from places import SPACES

from commands.console.terminals import pyte
from condkd_ray.core.records import read_records

SPACE = SPACES / "smoke.yaml"
SECONDS = 240.0


class Session:
    """A program in its own terminal."""

    def __init__(self, command: Sequence[str], columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream, self.written = pyte.ByteStream(self.screen), b""
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
            os.execv(command[0], command)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def until(self, seen: Callable[[], bool]) -> bool:
        """Read the output until `seen` is true or the program has ended; return whether it was true."""
        begin = time.monotonic()
        while time.monotonic() - begin < SECONDS:
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    text = os.read(self._terminal, 65536)
                except OSError:
                    return seen()
                self.written += text
                self._stream.feed(text)
            if seen():
                return True
        raise AssertionError("\n".join(self.lines))

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def close(self) -> None:
        """Close the terminal, as when its window is closed."""
        os.close(self._terminal)

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def search(tmp_path: Path, trials: int) -> list[str]:
    given = [str(SPACE), "--trials", str(trials), "--max-concurrent", "1"]
    place = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    return [sys.executable, "-m", "condkd_ray", "search", *given, *place]


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_shows_a_live_table_and_finally_the_places_of_its_results(tmp_path: Path):
    session, tables = Session(search(tmp_path, 3), rows=40), set[str]()

    def look() -> bool:
        shown = session.lines
        heads = [line for line in shown if "/3 trials" in line]
        # Never twice, never torn.
        assert len(heads) <= 1, shown
        tables.update(line for line in shown if line.startswith(("best: trial", "trial ", "running ", "  inversion/")))
        return False

    session.until(look)
    assert session.end() == 0, session.lines
    assert "running  round  proxy/agreement    best" in tables
    records = read_records(tmp_path / "out")
    assert {f"trial {number}" for number in range(3)} == {record.arm for record in records}
    true = {f"best: {record.arm}, proxy/agreement {record.metrics['proxy/agreement']:.4f}" for record in records}
    best = {line for line in tables if line.startswith("best: ")}
    assert best
    assert best <= true
    assert any(line.startswith("  inversion/bn_weight ") for line in tables)
    assert session.screen.cursor.hidden is False
    assert b"\x1b[?25l" not in session.written
    shown = "\n".join(session.lines)
    for text in ("3 of 3 trials in", "3 trials finished.", "page        ", "look live   condkd dashboard "):
        assert text in shown
    assert "/3 trials  " not in shown


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_leaves_a_clean_terminal(tmp_path: Path):
    session = Session(search(tmp_path, 200), columns=60, rows=12)
    assert session.until(lambda: any(line.startswith("best: trial") for line in session.lines))
    session.type(b"\x03")
    session.until(lambda: False)
    assert session.end() == 130
    assert session.lines[session.screen.cursor.y - 1] == "interrupted; the same command continues"
    assert session.screen.cursor.x == 0
    assert not any("/200 trials" in line for line in session.lines)


@pytest.mark.ray
@pytest.mark.slow
def test_a_closed_terminal_does_not_end_a_search(tmp_path: Path):
    session = Session(search(tmp_path, 3))
    assert session.until(lambda: any("/3 trials" in line for line in session.lines))
    session.close()
    assert session.end() == 0
    assert len(read_records(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "report.html").is_file()
