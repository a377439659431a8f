"""Paths and removal of the files that the trials of a sweep leave, and the lists of their exceptions."""

import json
import traceback
from collections.abc import Sequence
from typing import Literal

from condkd_ray.core.storage import Location, get_text, put_text, remove
from condkd_ray.trial.plan import PlannedTrial

STATUS = "pool.json"
"""Name of the file beside the chunks in which the pool records its contents."""
ATTEMPTS = 3
"""Exceptions after which a trial is given up (our choice); each attempt resumes from the checkpoint."""


def trial_folder(folder: Location, key: str) -> Location:
    """Return the folder of the trial `key`, which holds its checkpoint and its outcome."""
    return folder / "trials" / key


def trial_file(folder: Location, key: str, what: Literal["state", "outcome", "untested"]) -> Location:
    """Return the path of a trial's file.

    `what`: `state` for the checkpoint, `outcome` for the outcome, `untested` for a blind trial's outcome before its
    test.
    """
    return trial_folder(folder, key) / f"{what}.safetensors"


def halt_path(folder: Location) -> Location:
    """Return the path of the file whose presence stops all trials after their current round."""
    return folder / "trials" / "halt"


def chunks_folder(folder: Location) -> Location:
    """Return the folder of the pool's files."""
    return folder / "chunks"


def clear(storage: Location, done: Sequence[PlannedTrial], others: Sequence[PlannedTrial]) -> None:
    """Delete the files that the trials `done`, which have a record, left in `storage` when a driver died.

    Samples that one of the trials `others` shares stay.
    """
    needed = {trial.pool_key for trial in others}
    for trial in done:
        remove(trial_folder(storage, trial.key))
        if trial.pool_key not in needed:
            remove(chunks_folder(storage) / trial.pool_key)


def delete_trials(storage: Location, keys: Sequence[str]) -> None:
    """Delete the files of stopped trials from `storage`, with their own samples."""
    for key in keys:
        remove(trial_folder(storage, key))
        remove(chunks_folder(storage) / key)


def empty(storage: Location) -> None:
    """Delete everything that trials have left in `storage`, so that none resumes from it."""
    for name in ("trials", "chunks"):
        remove(storage / name)


def attempts_path(trial: Location) -> Location:
    """Return the path, in a trial's folder, of the list of its exceptions with their traces, first to last."""
    return trial / "attempts.json"


def note(trial: Location, error: Exception) -> int:
    """Append `error` to the list of exceptions in a trial's folder; return their number."""
    path = attempts_path(trial)
    errors = [*_errors(path), {"reason": one_line(error), "trace": "".join(traceback.format_exception(error))}]
    put_text(path, json.dumps({"errors": errors}, indent=1))
    return len(errors)


def last_reason(trial: Location) -> str:
    """Return the last exception of a trial's list in one line; empty if there was none. `trial`: its folder."""
    errors = _errors(attempts_path(trial))
    return errors[-1]["reason"] if errors else ""


def clear_attempts(trial: Location) -> None:
    """Delete the list of exceptions: a new sweep tries again."""
    attempts_path(trial).unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """Return the first line of the message that ends a trace of `error`."""
    # An exception from an actor comes wrapped together with its whole remote trace.
    inner = getattr(error, "cause", None) or error
    return "".join(traceback.format_exception_only(inner)).strip().splitlines()[0]


def _errors(path: Location) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        return json.loads(get_text(path))["errors"]
    except (ValueError, KeyError, TypeError):
        return []  # a damaged file: the count restarts
