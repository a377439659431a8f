"""A simulated terminal of any size, which keeps every write and the resulting screen."""

import io

import pytest

pyte = pytest.importorskip("pyte", reason="the terminal of the tests is not installed (pip install '.[test]')")


class Terminal(io.StringIO):
    """A stream whose output appears on a simulated screen. `writes`: all writes in order."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.screen = pyte.Screen(columns, rows)
        # The line discipline of a terminal makes both of one.
        self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)

    def write(self, s: str) -> int:
        self.writes.append(s)
        self._stream.feed(s)
        return len(s)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """Visible lines, without empty lines at the end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")
