"""Sources of images for trials that share them: one trial makes a round, the others take it from the pool.

Unlike the samples, the state of what makes them lies in a file beside the chunks, so that any sharer can go on with it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from condkd_ray.cluster.pool.actor import Taken
from condkd_ray.cluster.pool.shared_store import SharedStore, SweepStore
from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory import Store
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState
from condkd_ray.trial.synthesis import Production, begin, produce

HEARTBEAT_SECONDS = 2.0
"""Between two heartbeats of a trial that makes rounds for others."""
LONGEST_NAP = 0.2
"""Seconds between two questions of a trial that waits."""


class SharedSource:
    """Rounds that all trials of one production share: made by one of them, taken by the rest.

    Use as a context, so that another can follow at once when the maker is done. `path`: of the production's state,
    which is saved every `save_seconds` and at the end; a successor makes again what is made but not yet in it.
    """

    def __init__(self, pool: Any, key: str, who: str, path: Location, save_seconds: float) -> None:
        self._pool, self._key, self._who = pool, key, who
        self._path, self._save_seconds = path, save_seconds
        self._production: Production | None = None
        self._saved = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SharedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._save()
            self._thread.join()
            self._pool.release.remote(self._key, self._who)

    def __call__(
        self, config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
    ) -> tuple[Samples, Metrics]:
        """The next round, as everybody gets it; blocks until it is there."""
        assert isinstance(store, SharedStore)
        begun, taken, made = time.monotonic(), store.take(state.round), False
        while taken.metrics is None:
            if taken.turn:
                taken, made = self._make(config, prepared, state, store), True
            else:
                # Longer naps the longer it takes: they cost a tenth of the waiting at most.
                time.sleep(min(LONGEST_NAP, 0.005 + (time.monotonic() - begun) / 10))
                taken = store.take(state.round)
        return store.look(config.inversion.images_per_round), taken.metrics | {"pool/made": float(made)}

    def _make(self, config: TrialConfig, prepared: Prepared, state: TrialState, store: SharedStore) -> Taken:
        self._start_heartbeat()
        production = self._production or self._load(config, prepared)
        if production.round > state.round:
            production = begin(config, prepared)
        # In pieces while it is at work: should that fail, there is nothing to be saved.
        self._production, samples, terms = None, None, {}
        while production.round <= state.round:
            parts = (config, prepared, production, state.distiller.student, store.class_counts)
            samples, terms = produce(*parts, promised=True)
        assert samples is not None
        self._production = production
        taken = store.deliver(state.round, samples, terms)
        if time.monotonic() - self._saved >= self._save_seconds:
            self._save()
        return taken

    def _load(self, config: TrialConfig, prepared: Prepared) -> Production:
        production = begin(config, prepared)
        if self._path.is_file():
            states.load(production, self._path, prepared.teacher.device)
        return production

    def _save(self) -> None:
        if self._production is not None:
            states.save(self._production, self._path)
            self._saved = time.monotonic()

    def _start_heartbeat(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._heartbeat, daemon=True)
            self._thread.start()

    def _heartbeat(self) -> None:
        import ray
        from ray.exceptions import RayError

        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                ours = ray.get(self._pool.claim.remote(self._key, self._who))
            except RayError:  # the pool is being restarted
                continue
            if not ours:
                # We were given up while this process was held: who makes the rounds now has a later state.
                self._production = None
                return


def sweep_source(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """The trial's own images, after it has remembered what the other trials of the sweep have made meanwhile."""
    assert isinstance(store, SweepStore)
    assert isinstance(state.production, Production), "trials with a pipeline share nothing"
    parts = (config, prepared, state.production, state.distiller.student, store.class_counts)
    own, terms = produce(*parts, promised=True)
    taken = 0
    for _ in range(store.contribute(state.round, own) - 1):
        samples = store.look()
        config.memory.add(state.memory, store, samples, teacher=prepared.teacher, rng=state.streams)
        taken += len(samples)
    return store.look(), terms | {"pool/taken": float(taken)}
