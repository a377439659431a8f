"""How often a trial has raised an exception, in a file beside its checkpoint.

Tune counts exceptions and killed processes alike; of these two only exceptions are the trial's own.
"""

import json
import traceback

from condkd_ray.core.storage import Location, get_text, put_text

ATTEMPTS = 3
"""Exceptions after which a trial is given up (our choice); each attempt goes on from its checkpoint."""


def attempts_path(trial: Location) -> Location:
    """The file in the folder of a trial. It holds the traces of its exceptions, first to last."""
    return trial / "attempts.json"


def of_the_trial(error: Exception) -> bool:
    """Whether the trial itself raised it, or code that it called; not that it missed a process or an object."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayTaskError) or not isinstance(error, RayError)


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
    return json.loads(get_text(path))["errors"] if path.is_file() else []
