"""Opens the storage of a study (a journal file or a database URL) and suppresses Optuna's messages for developers."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError, require
from condkd_ray.study import journal

JOURNAL = "study.journal"
"""Name of the default journal in the folder of a run."""
ACCEPTED = "a file for a journal, sqlite:///FILE, or postgresql://USER@HOST/NAME"


def open_storage(place: str | None, out: Path, *, durable: bool = True) -> BaseStorage:
    """Open the storage at `place`, or a journal in `out` if None; `durable`: as in `condkd_ray.study.journal.Journal`.

    A journal is append-only and therefore safe on network file systems; SQLite, which needs file locks, is not. Several
    drivers on one study require PostgreSQL. Raises `InputError` if the storage cannot be reached or written.
    """
    text = place_of(place, out)
    try:
        if "://" in text:
            return RDBStorage(text)
        path = Path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        return journal.stored(path, durable=durable)
    except (OSError, ImportError, StorageInternalError, *_database_errors()) as error:
        fault = f"--study-storage is {text!r}, which cannot be used ({first_line(error)}); accepted: {ACCEPTED}"
        raise InputError(fault) from None


def names_at(place: str | None, out: Path) -> list[str]:
    """Return the names of the studies at `place` (None: the journal in `out`), without creating a file.

    Raises `InputError` if the storage cannot be read.
    """
    return optuna.get_all_study_names(open_storage(place, out)) if exists(place, out) else []


def place_of(place: str | None, out: Path) -> str:
    """Return the journal's path or the database's URL: `place`, or a journal in `out` if None."""
    return str(out / JOURNAL) if place is None else place


def exists(place: str | None, out: Path) -> bool:
    """Return whether the file of the storage at `place` (None: the journal in `out`) exists.

    True for a database server, which is not contacted.
    """
    path = place_of(place, out).removeprefix("sqlite:///")
    return "://" in path or os.path.isfile(path)


def refusal(error: BaseException) -> str | None:
    """Return one line about an error of a database that was in use; None if `error` is of another kind."""
    if not isinstance(error, (StorageInternalError, *_database_errors())):
        return None
    cause = error.__cause__ or error
    return f"the study's database cannot be used: {first_line(getattr(cause, 'orig', None) or cause)}"


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def stored_study(storage: BaseStorage, name: str, given: str) -> optuna.Study:
    """Return the study `name` of a storage or, if `name` is empty, its only study.

    Raises `InputError` if there is no such study. `given`: the user's text, for the message.
    """
    names = optuna.get_all_study_names(storage)
    found = [other for other in names if not name or other == name]
    require(len(found) == 1, "an earlier study", given, f"STORAGE#NAME with a NAME of {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=found[0], storage=storage)


@contextmanager
def quiet(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """Limit Optuna's log to `level` and above, and suppress its warnings about experimental features.

    The features in use are tested from the lower version bound in pyproject.toml on.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
