"""The files that the trials of a sweep leave, their exceptions among them, and their removal."""

import json
import traceback
from collections.abc import Sequence
from typing import Literal

from condkd_ray.core.storage import Location, get_text, put_text, remove
from condkd_ray.trial.plan import PlannedTrial

STATUS = "pool.json"
"""What the pool holds, as it has last written it down, beside its chunks."""
ATTEMPTS = 3
"""Exceptions after which a trial is given up (our choice); each attempt goes on from its checkpoint."""


def trial_folder(folder: Location, key: str) -> Location:
    """Where the trial `key` keeps its checkpoint, and leaves its outcome."""
    return folder / "trials" / key


def trial_file(folder: Location, key: str, what: Literal["state", "outcome", "untested"]) -> Location:
    """The checkpoint of the trial `key`; its outcome, left for the driver; or that of a blind one without the test."""
    return trial_folder(folder, key) / f"{what}.safetensors"


def halt_path(folder: Location) -> Location:
    """The sign that all trials shall stop after their round."""
    return folder / "trials" / "halt"


def chunks_folder(folder: Location) -> Location:
    """Where the pool keeps its files."""
    return folder / "chunks"


def clear(storage: Location, done: Sequence[PlannedTrial], others: Sequence[PlannedTrial]) -> None:
    """Delete what recorded trials have left in `storage`: a driver may have died just before it did.

    Samples that one of `others` shares stay.
    """
    needed = {trial.place[1] for trial in others}
    for trial in done:
        remove(trial_folder(storage, trial.key))
        if trial.place[1] not in needed:
            remove(chunks_folder(storage) / trial.place[1])


def bury(storage: Location, keys: Sequence[str]) -> None:
    """Delete what stopped trials have left in `storage`, and their own samples."""
    for key in keys:
        remove(trial_folder(storage, key))
        remove(chunks_folder(storage) / key)


def empty(storage: Location) -> None:
    """Delete all that trials have left in `storage`, so that none goes on from there."""
    for name in ("trials", "chunks"):
        remove(storage / name)


def attempts_path(trial: Location) -> Location:
    """The file in the folder of a trial. It holds the traces of its exceptions, first to last."""
    return trial / "attempts.json"


def note(trial: Location, error: Exception) -> int:
    """Add `error` to the file; how many there are now."""
    path = attempts_path(trial)
    errors = [*_errors(path), {"reason": one_line(error), "trace": "".join(traceback.format_exception(error))}]
    put_text(path, json.dumps({"errors": errors}, indent=1))
    return len(errors)


def last_reason(trial: Location) -> str:
    """The last exception in one line; empty where there was none."""
    errors = _errors(attempts_path(trial))
    return errors[-1]["reason"] if errors else ""


def start_anew(trial: Location) -> None:
    """Forget all exceptions: a new sweep tries again."""
    attempts_path(trial).unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """What a trace of `error` ends with, its first line."""
    # What an actor raised comes wrapped in the whole trace from there.
    inner = getattr(error, "cause", None) or error
    return "".join(traceback.format_exception_only(inner)).strip().splitlines()[0]


def _errors(path: Location) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        return json.loads(get_text(path))["errors"]
    except (ValueError, KeyError, TypeError):
        return []  # damaged: counted from here
