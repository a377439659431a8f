"""The files that the trials of a sweep leave, and their removal."""

from collections.abc import Sequence

from condkd_ray.core.storage import Location, remove
from condkd_ray.trial.plan import PlannedTrial


def trial_folder(folder: Location, key: str) -> Location:
    """Where the trial `key` keeps its checkpoint, and leaves its outcome."""
    return folder / "trials" / key


def checkpoint_path(folder: Location, key: str) -> Location:
    """The checkpoint of the trial `key`."""
    return trial_folder(folder, key) / "state.safetensors"


def halt_path(folder: Location) -> Location:
    """The sign that all trials shall stop after their round."""
    return folder / "trials" / "halt"


def chunks_folder(folder: Location) -> Location:
    """Where the pool keeps its files."""
    return folder / "chunks"


def outcome_path(folder: Location, key: str) -> Location:
    """Where the trial `key` leaves its outcome for the driver."""
    return trial_folder(folder, key) / "outcome.safetensors"


def untested_path(folder: Location, key: str) -> Location:
    """Where a blind trial leaves what the driver hears of before the test images are looked at."""
    return trial_folder(folder, key) / "untested.safetensors"


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
