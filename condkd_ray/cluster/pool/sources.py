"""Sources of images that other processes make for a trial: its producers, or the trials that share rounds with it."""

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from condkd_ray.cluster.actors import call_actor, retry_until_restarted
from condkd_ray.cluster.jobs import own_device, unpack
from condkd_ray.cluster.lost import is_lost
from condkd_ray.cluster.pool.actor import Taken
from condkd_ray.cluster.pool.chunks import Caller, write_unnamed
from condkd_ray.cluster.pool.stores import FilledStore, SharedStore, SweepStore, own_node
from condkd_ray.core import checkpoint as states
from condkd_ray.core.chunk_files import Arrays
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Samples
from condkd_ray.core.storage import Location
from condkd_ray.methods.memory import Store
from condkd_ray.methods.memory.store import to_arrays
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import TrialState
from condkd_ray.trial.packing import PreparedRefs, to_plain, to_tensor
from condkd_ray.trial.synthesis import Pipelined, Producer, Production, begin, codec, produce

RESTARTS = 3
"""Number of times that dead producers are replaced while the trial waits for one round (our choice).

After that, the trial itself is retried.
"""
HEARTBEAT_SECONDS = 2.0
"""Time between two heartbeats of a trial that makes rounds for others, in seconds."""
LONGEST_WAIT = 0.2
"""Longest time between two requests of a waiting trial, in seconds."""


class ProducerProcess:
    """A `Producer` as an actor; see `Producers`."""

    def __init__(self, config: TrialConfig, refs: PreparedRefs, pool: Any, key: str, each: Allowance) -> None:
        set_up_process(each.threads, each.gpus)
        self._config, self._refs, self._pool, self._key = config, refs, pool, key
        self._producer: Producer | None = None

    def make(self, number: int, round: int, snapshot: Any, state: Any) -> tuple[Metrics, Any]:
        """Make a round and put it into the pool. Return its metrics and the producer's state after it, as arrays.

        `number`: the producer's number, from 0. `snapshot`: student and class counts that the synthesis uses.
        `state`: producer state to resume from, or None; used only for the first round that this process makes.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        if self._producer is None:
            prepared = unpack(self._config, self._refs, own_device())
            self._codec = codec(self._config, prepared.teacher)
            self._folder = call_actor(self._pool.folder) / self._key
            self._producer = Producer(self._config, prepared, number, to_tensor(state))
        samples, terms = self._producer.make(to_tensor(snapshot))
        self._store(round * len(samples), to_arrays(self._codec.encode(samples)))
        terms["time/production_seconds"] = time.perf_counter() - wall
        terms["time/production_cpu_seconds"] = time.process_time() - cpu
        return terms, to_plain(self._producer.state())

    def _store(self, start: int, arrays: Arrays) -> None:
        """Put a round whose first id is `start` into the pool."""

        def fill() -> None:
            described, caller = write_unnamed(self._folder, arrays), Caller(own_node())
            ray.get(self._pool.fill.remote(self._key, start, **described, caller=caller))

        retry_until_restarted(fill)


class Producers(AbstractContextManager):
    """The producers of one trial; a source of its images. Use it as a context: the producers end with the block.

    At most `staleness` + 1 rounds are being made at a time: the round that the trial needs next, and later ones.
    """

    def __init__(self, refs: PreparedRefs, pool: Any, key: str, per_producer: Allowance) -> None:
        self._refs, self._pool, self._key, self._each = refs, pool, key, per_producer
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, tuple[Any, Any]] = {}

    def __exit__(self, *_: object) -> None:
        self._end_producers()

    def __call__(
        self, config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
    ) -> tuple[Samples, Metrics]:
        """Wait for the next round and return its images and metrics, which include `time/waiting_seconds`."""
        assert isinstance(store, FilledStore)
        assert isinstance(state.production, Pipelined)
        assert config.pipeline is not None
        pipeline, production, round = config.pipeline, state.production, state.round
        production.record(config, round, state.distiller.student, store.class_counts)
        begun = time.perf_counter()
        terms = self._await(config, production, round, store)
        terms["time/waiting_seconds"] = time.perf_counter() - begun
        store.refresh()
        _, reached = self._pending.pop(round)
        production.states[pipeline.producer(round)] = lambda: to_tensor(ray.get(reached))
        production.drop_before(pipeline.student_round(round + 1))
        return store.peek(config.inversion.images_per_round), terms

    def _await(self, config: TrialConfig, production: Pipelined, round: int, store: FilledStore) -> Metrics:
        """Wait until `round` is in the pool and return its metrics. Producers that die meanwhile are replaced."""
        for left in reversed(range(RESTARTS + 1)):
            self._request_ahead(config, production, round)
            try:
                return ray.get(self._pending[round][0])
            except RayError as error:
                if isinstance(error, RayTaskError) and not is_lost(error):
                    # Raise the producer's exception as if it had been raised here.
                    raise error.cause from None
                if not (left and is_lost(error)):
                    raise
                self._end_producers()
                store.clear_ahead()
        raise AssertionError

    def _request_ahead(self, config: TrialConfig, production: Pipelined, round: int) -> None:
        """Request `round`, and as many later rounds as may be made in advance."""
        pipeline = config.pipeline
        assert pipeline is not None
        for ahead in range(round, min(round + pipeline.staleness + 1, config.total_rounds)):
            if ahead in self._pending:
                continue
            number, state = pipeline.producer(ahead), None
            if number not in self._actors:
                self._actors[number] = self._start(config, number)
                state = production.states.get(number)
            snapshot = to_plain(production.past[pipeline.student_round(ahead)])
            make = self._actors[number].make.options(num_returns=2)
            self._pending[ahead] = make.remote(number, ahead, snapshot, to_plain(state()) if state else None)

    def _start(self, config: TrialConfig, number: int) -> Any:
        # The first bundle belongs to the learner.
        group = ray.util.get_current_placement_group()
        assert group is not None, "trials run in placement groups"
        place = PlacementGroupSchedulingStrategy(group, number + 1)
        options = {"num_cpus": self._each.cpus, "num_gpus": self._each.gpus, "scheduling_strategy": place}
        actor = ray.remote(**options)(ProducerProcess)
        return actor.remote(config, self._refs, self._pool, self._key, self._each)

    def _end_producers(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors, self._pending = {}, {}


class SharedSource(AbstractContextManager):
    """A source of rounds that several trials share: one trial makes them, the others read them.

    Use it as a context, so that another trial can take over at once when the maker ends. `path`: file of the
    production's state, saved every `save_seconds` and at the end. After a death of the maker, its successor repeats the
    rounds made since the last save.
    """

    def __init__(self, pool: Any, key: str, trial: str, path: Location, save_seconds: float) -> None:
        self._pool, self._key, self._trial = pool, key, trial
        self._path, self._save_seconds = path, save_seconds
        self._production: Production | None = None
        self._saved = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._save()
            self._thread.join()
            self._pool.release.remote(self._key, self._trial)

    def __call__(
        self, config: TrialConfig, prepared: Prepared, state: TrialState, store: Store
    ) -> tuple[Samples, Metrics]:
        """Wait for the next round, which is equal for all trials that share it; return its images and metrics."""
        assert isinstance(store, SharedStore)
        begun, taken, made = time.monotonic(), store.take(state.round), False
        while taken.metrics is None:
            if taken.turn:
                taken, made = self._make(config, prepared, state, store), True
            else:
                # Sleep longer as the wait gets longer: this delays the trial by at most a tenth of its waiting time.
                time.sleep(min(LONGEST_WAIT, 0.005 + (time.monotonic() - begun) / 10))
                taken = store.take(state.round)
        return store.peek(config.inversion.images_per_round), taken.metrics | {"pool/made": float(made)}

    def _make(self, config: TrialConfig, prepared: Prepared, state: TrialState, store: SharedStore) -> Taken:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._heartbeat, daemon=True)
            self._thread.start()
        production = self._production or self._load(config, prepared)
        if production.round > state.round:
            production = begin(config, prepared)
        # The production is unusable while a round is being made: if this fails, there is no state to save.
        self._production, samples, terms = None, None, {}
        while production.round <= state.round:
            parts = (config, prepared, production, state.distiller.student, store.class_counts)
            samples, terms = produce(*parts, with_logits=config.shares_logits)
        assert samples is not None
        self._production = production
        taken = store.deliver(state.round, samples, terms)
        if time.monotonic() - self._saved >= self._save_seconds:
            self._save()
        return taken

    def _load(self, config: TrialConfig, prepared: Prepared) -> Production:
        production = begin(config, prepared)
        states.load_whole(production, self._path, prepared.teacher.device)
        return production

    def _save(self) -> None:
        if self._production is not None:
            states.save(self._production, self._path)
            self._saved = time.monotonic()

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                ours = ray.get(self._pool.claim.remote(self._key, self._trial))
            except RayError:  # the pool is being restarted
                continue
            if not ours:
                # Another trial took over while this process was suspended, and has a later state.
                self._production = None
                return


def sweep_source(config: TrialConfig, prepared: Prepared, state: TrialState, store: Store) -> tuple[Samples, Metrics]:
    """Make a round of the trial's own images and return it, with its metrics.

    Before that, the trial's memory stores the images that other trials of the sweep have made since its last round.
    """
    assert isinstance(store, SweepStore)
    assert isinstance(state.production, Production), "trials with a pipeline share nothing"
    parts = (config, prepared, state.production, state.distiller.student, store.class_counts)
    own, terms = produce(*parts, with_logits=config.shares_logits)
    *others, last = store.contribute(state.round, own)
    for size in others:
        config.memory.add(state.memory, store, store.peek(size), teacher=prepared.teacher, rng=state.streams)
    return store.peek(last), terms | {"pool/taken": float(sum(others))}
