"""Parts of a check, one after another: each in a box of time, its figures on disk as soon as they are known.

A part that raises an exception, or whose box ends, leaves what it has found so far and does not stop the others. The
end of a box is a signal, which Python hears between two of its own instructions: a call into a library that never
returns, such as one that waits for a GPU that hangs, cannot be interrupted, and then somebody has to end the process.
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
"""`begun` stays where the process was ended."""
AGAIN = 30.0
"""Seconds from one signal to the next: longer than a part takes to clear up."""
LINES = 4
"""Lines of a traceback that are kept."""
SAME = ("git", "device", "tiny", "torch")
"""What has to be equal for the parts of two calls to stand in one report."""


class BoxEndedError(BaseException):
    """The time of a part is over. Not an `Exception`, which a library might catch and go on."""


class SkippedError(Exception):
    """A part cannot be run here; the message says why."""


class Verdict(NamedTuple):
    """Whether the goal of a part is met, and what is held against which goal."""

    passed: bool
    told: str


@dataclass(frozen=True)
class Setup:
    """Where and on what everything runs."""

    device: torch.device
    sizes: Sizes
    data_root: Path | None
    """CIFAR-10, in any layout that the package reads."""
    work: Path
    """Teacher, checkpoint and caches lie here, so that the same command goes on."""

    def verdict(self, met: bool, told: str, goal: str) -> Verdict:
        """Of a goal, which is held against full sizes alone."""
        held = "; tiny: no goal is held against this" if self.sizes.tiny else ""
        return Verdict(self.sizes.tiny or met, f"{told}; goal: {goal}{held}")


@dataclass
class Report:
    """What is known so far, always whole on the disk at `path`."""

    path: Path
    about: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, about: dict[str, Any]) -> "Report":
        """With what an earlier call has found on the same; another's file is renamed, and stays beside this one.

        Raises `InputError` where there is a file that is no report.
        """
        if not path.exists():
            return cls(path, about)
        try:
            found = json.loads(path.read_bytes())
            then, parts = found["about"], found["parts"]
            other = [name for name in SAME if then.get(name) != about.get(name)]
            for entry in parts.values():  # Whatever is of another shape raises.
                entry.get("figures", {}).keys()
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            accepted = f"a report of this script, or no file yet ({type(error).__name__})"
            raise InputError(f"--out is {str(path)!r}; accepted: {accepted}") from None
        if not other:
            return cls(path, about, parts)
        aside = next(name for name in _beside(path) if not name.exists())
        path.rename(aside)
        print(f"{path} was of another {', '.join(other)}: it is now {aside.name}, and this begins anew", flush=True)
        return cls(path, about)

    def note(self, part: str, **found: Any) -> None:
        """Keep what a part has found. Raises `ValueError` for a figure that is not finite: it would be no JSON."""
        entry = self.parts.setdefault(part, {})
        parts = dict(sorted((self.parts | {part: entry | found}).items()))
        text = json.dumps({"about": self.about, "parts": parts}, allow_nan=False, indent=1)
        entry |= found
        atomic_write(self.path, text.encode())


@dataclass
class Box:
    """What a part is given: where to note figures, and how long it may take."""

    report: Report
    part: str
    ends: float
    """By `time.monotonic()`."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def note(self, name: str, figures: Any) -> None:
        """Print a figure, or several by name, and keep them under `name`."""
        known = self.report.parts.get(self.part, {}).get("figures", {})
        self.report.note(self.part, figures=known | {name: figures})
        print(f"  {name}: {_told(figures)}", flush=True)

    def found(self, part: str, name: str) -> Any:
        """What another part has noted last, in this call or an earlier one; None where it has not."""
        entry = self.report.parts.get(part, {})
        noted = (one.get("figures", {}) for one in (entry, *entry.get("earlier", [])))
        return next((figures[name] for figures in noted if name in figures), None)


@dataclass(frozen=True)
class Part:
    """A part by its letter: the seconds planned for it, and the function that runs it."""

    letter: str
    name: str
    seconds: float
    run: Callable[[Setup, Box], Verdict]
    takes_rest: bool = False
    """Whether it gets what earlier parts have left of their seconds."""


def run(parts: Sequence[Part], setup: Setup, report: Report, minutes: float) -> int:
    """Run all parts within `minutes`; seconds planned are scaled to them. The exit code: 1 where one has failed."""
    planned = sum(part.seconds for part in parts)
    scale, end = 60 * minutes / planned, time.monotonic() + 60 * minutes
    failed = False
    for number, part in enumerate(parts):
        later = scale * sum(one.seconds for one in parts[number + 1 :])
        rest = end - time.monotonic() - later
        status = _run(part, setup, report, rest if part.takes_rest else min(rest, scale * part.seconds))
        failed = failed or status == "failed"
    return int(failed)


def _run(part: Part, setup: Setup, report: Report, seconds: float) -> Status:
    """Its status. What earlier calls have found stays beside what this one finds, or as it is where that is nothing."""
    print(f"({part.letter}) {part.name}, {max(seconds, 0):.0f} s at most", flush=True)
    begun, more, earlier = time.monotonic(), {}, report.parts.get(part.letter)
    status: Status = "skipped"
    report.parts[part.letter] = {"name": part.name, "status": "begun"} | _kept(earlier or {})
    try:
        with boxed(seconds):
            passed, told = part.run(setup, Box(report, part.letter, begun + seconds))
        status = "passed" if passed else "failed"
    except BoxEndedError:
        told = f"time: {max(seconds, 0):.0f} s were not enough"
    except SkippedError as skipped:
        told = str(skipped)
    except Exception as error:
        status, told = "failed", f"{type(error).__name__}: {error}"
        more = {"trace": traceback.format_exc().splitlines()[-2 * LINES :]}
    spent = round(time.monotonic() - begun, 1)
    if earlier is not None and status == "skipped" and "figures" not in report.parts[part.letter]:
        report.parts[part.letter], told = earlier, f"{told}; the report keeps what an earlier call has found"
    else:
        report.note(part.letter, status=status, told=told, seconds=spent, **more)
    print(f"({part.letter}) {part.name}: {status}: {told} [{spent:.1f} s]", flush=True)
    return status


def _kept(entry: dict[str, Any]) -> dict[str, Any]:
    """The entries of earlier calls that have found something, the newest first, as they stay beside a new one."""
    older, own = entry.get("earlier", []), {name: value for name, value in entry.items() if name != "earlier"}
    kept = [own, *older] if "figures" in own else older
    return {"earlier": kept} if kept else {}


@contextmanager
def boxed(seconds: float) -> Iterator[None]:
    """Raise `BoxEndedError` in a block that is still running after `seconds`; at once where these are not above 0."""

    def ring(*_: object) -> None:
        raise BoxEndedError

    if seconds <= 0:
        raise BoxEndedError
    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: what is raised while Python runs a finaliser, or a callback of its garbage collector, is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _beside(path: Path) -> Iterator[Path]:
    """Names for an older file."""
    return (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))


def _told(figures: Any) -> str:
    if isinstance(figures, dict):
        return ", ".join(f"{name} {_told(value)}" for name, value in figures.items())
    if isinstance(figures, list):
        return "".join(f"\n    {_told(value)}" for value in figures) or "none"
    return f"{figures:.4g}" if isinstance(figures, float) else str(figures)
