"""Where a study is stored: a journal file, or a data base by its URL; and Optuna without its words to developers."""

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
ACCEPTED = "a file for a journal, sqlite:///FILE, or postgresql://USER@HOST/NAME"


def open_storage(place: str | None, out: Path) -> BaseStorage:
    """The storage at `place`, a journal in `out` if None.

    A journal is only ever appended to and so bears network file systems, which SQLite's locks do not; several drivers
    on one study need PostgreSQL. Raises `InputError` where it cannot be reached or written.
    """
    text = place_of(place, out)
    try:
        if "://" in text:
            return RDBStorage(text)
        path = Path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        return journal.stored(path)
    except (OSError, ImportError, StorageInternalError, *_database_errors()) as error:
        told = f"--study-storage is {text!r}, which cannot be used ({first_line(error)}); accepted: {ACCEPTED}"
        raise InputError(told) from None


def names_at(place: str | None, out: Path) -> list[str]:
    """Of the studies at `place`. No file is made for the question. Raises `InputError`."""
    return optuna.get_all_study_names(open_storage(place, out)) if exists(place, out) else []


def place_of(place: str | None, out: Path) -> str:
    """The journal's path or data base's URL: `place`, a journal in `out` if None."""
    return str(out / JOURNAL) if place is None else place


def exists(place: str | None, out: Path) -> bool:
    """Whether there is such a file; of a data base server it is assumed."""
    path = place_of(place, out).removeprefix("sqlite:///")
    return "://" in path or os.path.isfile(path)


def refusal(error: BaseException) -> str | None:
    """What a data base has refused while it was in use, in one line; None where `error` is about anything else."""
    if not isinstance(error, (StorageInternalError, *_database_errors())):
        return None
    cause = error.__cause__ or error
    return f"the study's data base cannot be used: {first_line(getattr(cause, 'orig', None) or cause)}"


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def stored_study(storage: BaseStorage, name: str, told: str) -> optuna.Study:
    """The study `name` of a storage, or its only one. Raises `InputError`; `told` is what the user wrote."""
    names = optuna.get_all_study_names(storage)
    found = [other for other in names if not name or other == name]
    require(len(found) == 1, "an earlier study", told, f"STORAGE#NAME with a NAME of {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=found[0], storage=storage)


@contextmanager
def quiet(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """No information on each step, no word on what may change in a later version: the lower bound is in pyproject.

    `level`: of what Optuna logs, the least that is let through.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
