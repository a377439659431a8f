"""The trials of a sweep: what each is, in which order they run, and the files they leave behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from condkd_ray.cluster.worker.trainable import chunks_folder, trial_folder
from condkd_ray.core.storage import Location, remove
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.identity import Scope, pool_key


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep. `key` names its files, and is its own; `label` is for people."""

    key: str
    label: str
    config: TrialConfig
    prepared: Prepared
    scope: Scope = "trial"
    """Which other trials of the sweep it shares its samples with."""
    heir_of: str = ""
    """Of a search: key of the trial whose state and samples it takes over at its start."""
    rests: int | None = None
    """Of a search: the round after which it rests, for its heirs."""
    buries: tuple[str, ...] = ()
    """Of a search: keys of trials at rest that have no heirs left, whose files go as it starts."""

    @property
    def place(self) -> tuple[Scope, str]:
        """The scope it really has, and the pool's key of its samples."""
        return pool_key(self.scope, self.key, self.config, self.prepared)


def producers_first(trials: Sequence[Trial]) -> list[Trial]:
    """One trial of each pool key, then the next of each, and so on: those of a group wait less for one another."""
    seen: Counter[str] = Counter()
    turns = []
    for trial in trials:
        turns.append(seen[trial.place[1]])
        seen[trial.place[1]] += 1
    return [trial for _, trial in sorted(zip(turns, trials, strict=True), key=lambda pair: pair[0])]


def clear(storage: Location, done: Sequence[Trial], others: Sequence[Trial]) -> None:
    """Delete what recorded trials have left in `storage`: a driver may have died just before it did.

    Samples that one of `others` shares stay.
    """
    needed = {trial.place[1] for trial in others}
    for trial in done:
        remove(trial_folder(storage, trial.key))
        if trial.place[1] not in needed:
            remove(chunks_folder(storage) / trial.place[1])


def bury(storage: Location, keys: Sequence[str]) -> None:
    """Delete what trials at rest have left in `storage`, and their own samples."""
    for key in keys:
        remove(trial_folder(storage, key))
        remove(chunks_folder(storage) / key)


def empty(storage: Location) -> None:
    """Delete all that trials have left in `storage`, so that none goes on from there."""
    for name in ("trials", "chunks"):
        remove(storage / name)
