"""The log of the rounds that several trials share: one line per round, in the order of the samples' ids.

A new line is appended; no line is written twice. An object store has no appending, so the log there is split into files
of a few lines, of which only the last one is replaced.
"""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from condkd_ray.core.method import Metrics
from condkd_ray.core.storage import Location, files, get_text, naming, put_text

NAME = "rounds.jsonl"
"""Name of the log's file. In an object store a number follows."""
LINES = 64
"""Lines per file in an object store (our choice: a file has about 10 kB)."""


class LoggedRound(NamedTuple):
    """A round that is in the pool."""

    trial: str
    """Key of the trial that made it."""
    stop: int
    """Last id of its samples + 1. The first id is the `stop` of the round before."""
    metrics: Metrics | None
    """Metrics of its synthesis, if other trials use the round in place of one of their own."""


class RoundLog:
    """The rounds of a shared key, read from the files in `folder`.

    `num_ids`: samples that are in the pool. Rounds beyond it are removed from the log: a power loss can leave a line
    without its samples.
    """

    def __init__(self, folder: Location, num_ids: int) -> None:
        self._folder = folder
        self.rounds: list[LoggedRound] = []
        self.of_trial: dict[str, list[int]] = defaultdict(list)
        """Numbers in `rounds` of each trial's rounds."""
        lines = self._read()
        for line in lines:
            found = _parse(line)
            if found is None or found.stop > num_ids:
                break
            self._enter(found)
        if len(self.rounds) < len(lines):
            self._cut()

    @property
    def num_ids(self) -> int:
        """Number of samples in all rounds."""
        return self.rounds[-1].stop if self.rounds else 0

    def append(self, trial: str, size: int, metrics: Metrics | None = None) -> None:
        """Add a round of `size` samples. It is in the file when the call returns; if it raises, nothing is added."""
        made, number = LoggedRound(trial, self.num_ids + size, metrics), len(self.rounds)
        if isinstance(self._folder, Path):
            _append(self._folder / NAME, _line(made))
        else:
            first = number // LINES * LINES
            put_text(self._part(number // LINES), self._text(first, number) + _line(made))
        self._enter(made)

    def received(self, trial: str, round: int) -> list[int]:
        """Return the sizes of the rounds that a trial takes over after it has made its round `round` (from 0).

        These are the rounds of others since its round before, or since the first one of all, and then its own.
        """
        own = self.of_trial[trial]
        first = own[round - 1] + 1 if round else 0
        start = self.rounds[first - 1].stop if first else 0
        stops = [start, *(made.stop for made in self.rounds[first : own[round] + 1])]
        return [stop - start for start, stop in pairwise(stops)]

    def _enter(self, found: LoggedRound) -> None:
        self.of_trial[found.trial].append(len(self.rounds))
        self.rounds.append(found)

    def _read(self) -> list[str]:
        """Return the lines of the log. The last one may have been written in part."""
        if isinstance(self._folder, Path):
            path = self._folder / NAME
            return get_text(path).splitlines(keepends=True) if path.is_file() else []
        parts = sorted(path.name for path in files(self._folder) if path.name.startswith(f"{NAME}."))
        return [line for name in parts for line in get_text(self._folder / name).splitlines(keepends=True)]

    def _cut(self) -> None:
        """Remove from the files what is not in `rounds`."""
        if isinstance(self._folder, Path):
            return put_text(self._folder / NAME, self._text(0, len(self.rounds)))
        last = len(self.rounds) // LINES
        for path in files(self._folder):
            if path.name.startswith(f"{NAME}.") and path.name >= self._part(last).name:
                path.unlink()
        if len(self.rounds) % LINES:
            put_text(self._part(last), self._text(last * LINES, len(self.rounds)))

    def _part(self, number: int) -> Location:
        return self._folder / f"{NAME}.{number:06d}"

    def _text(self, start: int, stop: int) -> str:
        return "".join(map(_line, self.rounds[start:stop]))


def _append(path: Path, line: str) -> None:
    """Append a line. If that fails, such as on a full disk, remove what was written of it."""
    # Without a buffer, which would write its rest once more when the file is closed.
    with naming(path), open(path, "ab", buffering=0) as file:
        size, left = file.tell(), line.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


def _line(made: LoggedRound) -> str:
    return json.dumps(made) + "\n"


def _parse(line: str) -> LoggedRound | None:
    """Return the round of a line; None if the line is damaged or was not written to its end."""
    try:
        trial, stop, metrics = json.loads(line)
    except (ValueError, TypeError):
        return None
    return LoggedRound(trial, stop, metrics) if line.endswith("\n") else None
