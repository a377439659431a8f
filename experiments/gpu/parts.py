"""Runs the parts of a check one after another, each in a box of time; figures are on disk as soon as they are known.

A part that raises an exception or exceeds its box keeps the figures noted so far, and the next part runs. The end of a
box is a signal, which Python handles between two of its instructions: a library call that never returns, such as one
that waits for a hanging GPU, cannot be interrupted, and the process must be killed from outside.
"""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from condkd_ray.core.method import InputError
from condkd_ray.core.storage import atomic_write
from gpu.sizes import Sizes

Status = Literal["begun", "passed", "failed", "skipped"]
"""Status of a part; `begun` remains if the process was killed."""
AGAIN = 30.0
"""Seconds between repeated signals: longer than a part's clean-up takes."""
LINES = 4
"""Lines of a traceback that are kept."""
SAME = ("git", "device", "tiny", "torch")
"""Facts that must be equal for the parts of two calls to share a report."""


class BoxEndedError(BaseException):
    """The time of a part is over. Not an `Exception`, which a library might catch."""


class SkippedError(Exception):
    """A part cannot run here; the message gives the reason."""


class Verdict(NamedTuple):
    """Result of a part: whether its goal is met, and a text with the value and the goal."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Setup:
    """Device, sizes and folders of a check."""

    device: torch.device
    sizes: Sizes
    data_root: Path | None
    """Folder of CIFAR-10, in any layout that the package reads."""
    work: Path
    """Folder for the teacher, checkpoints and caches, from which the same command continues."""

    def verdict(self, met: bool, text: str, goal: str) -> Verdict:
        """Return the verdict on a goal, which applies to full sizes only."""
        tiny = "; tiny: the goal does not apply" if self.sizes.tiny else ""
        return Verdict(self.sizes.tiny or met, f"{text}; goal: {goal}{tiny}")


@dataclass
class Report:
    """Figures and statuses so far, always complete in the file at `path`."""

    path: Path
    about: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, about: dict[str, Any]) -> "Report":
        """Return the report at `path` with its earlier parts if it has the same facts; otherwise start a new one.

        A report with other facts is renamed and stays in the folder. Raises `InputError` if the file is not a report.
        """
        if not path.exists():
            return cls(path, about)
        try:
            found = json.loads(path.read_bytes())
            then, parts = found["about"], found["parts"]
            other = [name for name in SAME if then.get(name) != about.get(name)]
            for entry in parts.values():  # raises if an entry has another shape
                entry.get("figures", {}).keys()
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            accepted = f"a report of this script, or no file yet ({type(error).__name__})"
            raise InputError(f"--out is {str(path)!r}; accepted: {accepted}") from None
        if not other:
            return cls(path, about, parts)
        aside = next(name for name in _beside(path) if not name.exists())
        path.rename(aside)
        print(f"{path} was of another {', '.join(other)}: it is now {aside.name}, and a new report begins", flush=True)
        return cls(path, about)

    def note(self, part: str, **found: Any) -> None:
        """Store what a part found. Raises `ValueError` for a figure that is not finite, which JSON cannot hold."""
        entry = self.parts.setdefault(part, {})
        parts = dict(sorted((self.parts | {part: entry | found}).items()))
        text = json.dumps({"about": self.about, "parts": parts}, allow_nan=False, indent=1)
        entry |= found
        atomic_write(self.path, text.encode())


@dataclass
class Box:
    """Access of a part to the report, and its time limit."""

    report: Report
    part: str
    ends: float
    """End of the part's time, on the clock of `time.monotonic()`."""

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def note(self, name: str, figures: Any) -> None:
        """Print a figure, or several by name, and store them under `name`."""
        known = self.report.parts.get(self.part, {}).get("figures", {})
        self.report.note(self.part, figures=known | {name: figures})
        print(f"  {name}: {_text(figures)}", flush=True)

    def found(self, part: str, name: str) -> Any:
        """Return the figure that another part noted last, in this or an earlier call; None if there is none."""
        entry = self.report.parts.get(part, {})
        all_figures = (one.get("figures", {}) for one in (entry, *entry.get("earlier", [])))
        return next((figures[name] for figures in all_figures if name in figures), None)


@dataclass(frozen=True)
class Part:
    """A part of the check: its letter, name, planned seconds, and function."""

    letter: str
    name: str
    seconds: float
    run: Callable[[Setup, Box], Verdict]
    takes_rest: bool = False
    """True if the part also gets the time that earlier parts did not use."""


def run(parts: Sequence[Part], setup: Setup, report: Report, minutes: float) -> int:
    """Run all parts within `minutes`, to which the planned seconds are scaled; the exit code is 1 if one failed."""
    planned = sum(part.seconds for part in parts)
    scale, end = 60 * minutes / planned, time.monotonic() + 60 * minutes
    failed = False
    for number, part in enumerate(parts):
        later = scale * sum(one.seconds for one in parts[number + 1 :])
        rest = end - time.monotonic() - later
        status = run_part(part, setup, report, rest if part.takes_rest else min(rest, scale * part.seconds))
        failed = failed or status == "failed"
    return int(failed)


def run_part(part: Part, setup: Setup, report: Report, seconds: float) -> Status:
    """Run a part and return its status. Figures of earlier calls are kept together with new ones."""
    print(f"({part.letter}) {part.name}, {max(seconds, 0):.0f} s at most", flush=True)
    begun, more, earlier = time.monotonic(), {}, report.parts.get(part.letter)
    status: Status = "skipped"
    report.parts[part.letter] = {"name": part.name, "status": "begun"} | _kept(earlier or {})
    try:
        with boxed(seconds):
            passed, text = part.run(setup, Box(report, part.letter, begun + seconds))
        status = "passed" if passed else "failed"
    except BoxEndedError:
        text = f"time: {max(seconds, 0):.0f} s were not enough"
    except SkippedError as skipped:
        text = str(skipped)
    except Exception as error:
        status, text = "failed", f"{type(error).__name__}: {error}"
        more = {"trace": traceback.format_exc().splitlines()[-2 * LINES :]}
    spent = round(time.monotonic() - begun, 1)
    if earlier is not None and status == "skipped" and "figures" not in report.parts[part.letter]:
        report.parts[part.letter], text = earlier, f"{text}; the report keeps the figures of an earlier call"
    else:
        report.note(part.letter, status=status, told=text, seconds=spent, **more)
    print(f"({part.letter}) {part.name}: {status}: {text} [{spent:.1f} s]", flush=True)
    return status


def _kept(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of earlier calls that have figures, newest first, for storage together with a new entry."""
    older, own = entry.get("earlier", []), {name: value for name, value in entry.items() if name != "earlier"}
    kept = [own, *older] if "figures" in own else older
    return {"earlier": kept} if kept else {}


@contextmanager
def boxed(seconds: float) -> Iterator[None]:
    """Raise `BoxEndedError` in a block that runs longer than `seconds`; at once if `seconds` is not above 0."""

    def ring(*_: object) -> None:
        raise BoxEndedError

    if seconds <= 0:
        raise BoxEndedError
    before = signal.signal(signal.SIGALRM, ring)
    # Repeatedly, because an exception raised inside a finaliser or a garbage collector callback is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _beside(path: Path) -> Iterator[Path]:
    """Yield names for an older file, in the same folder."""
    return (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))


def _text(figures: Any) -> str:
    if isinstance(figures, dict):
        return ", ".join(f"{name} {_text(value)}" for name, value in figures.items())
    if isinstance(figures, list):
        return "".join(f"\n    {_text(value)}" for value in figures) or "none"
    return f"{figures:.4g}" if isinstance(figures, float) else str(figures)
